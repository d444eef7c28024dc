// A folder for one test: in $TMPDIR, or in /tmp where that is not set, not absolute, or too long
// for the sockets that lie in the folder.
#ifndef PENSTOCK_TESTS_SUPPORT_FOLDER_H
#define PENSTOCK_TESTS_SUPPORT_FOLDER_H

enum { FOLDER_SIZE = 80 }; // the path of a unix socket in it has 108 bytes at most

// Makes penstock-NAME-XXXXXX, empty, and fills `path`.
void folder_make(char path[FOLDER_SIZE], const char *name);

// Removes it with all that is in it.
void folder_remove(const char *path);

#endif
