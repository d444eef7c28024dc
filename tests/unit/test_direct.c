// Reads past the page cache: the bytes are the file's wherever a read begins and ends, and a file
// that is in the cache is not read so.
#include "common/direct.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/support/folder.h"

enum { SIZE = 40 * DIRECT_ALIGN + 123, ROOM = 82 * DIRECT_ALIGN };

struct file {
    char folder[FOLDER_SIZE], path[FOLDER_SIZE + 8];
    unsigned char *bytes; // (SIZE)
    int fd;
};

static void file_make(struct file *f)
{
    folder_make(f->folder, "direct");
    snprintf(f->path, sizeof f->path, "%s/file", f->folder);
    f->bytes = malloc(SIZE);
    for (uint32_t i = 0; i < SIZE; i++) f->bytes[i] = (unsigned char) (i * 2654435761u >> 24);
    f->fd = open(f->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_int_equal(write(f->fd, f->bytes, SIZE), SIZE);
}

static void file_remove(struct file *f)
{
    close(f->fd);
    folder_remove(f->folder);
    free(f->bytes);
}

// Its pages leave the cache.
static void file_forget(const struct file *f)
{
    assert_int_equal(fsync(f->fd), 0);
    assert_int_equal(posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

// Whether the page cache has the middle of it, and says so.
static bool file_is_cached(const struct file *f)
{
    char byte;
    struct iovec to = {&byte, 1};
    return preadv2(f->fd, &to, 1, SIZE / 2, RWF_NOWAIT) == 1;
}

// Whether its file system lets it be read past the page cache. Some are nothing but that cache.
static bool file_can(const struct file *f)
{
    int fd = open(f->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd >= 0) close(fd);
    return fd >= 0 && !file_is_cached(f);
}

static void bytes_are_the_files(void **state)
{
    (void) state;
    struct file f;
    file_make(&f);
    file_forget(&f);
    bool can = file_can(&f);
    int direct = direct_open(f.path, f.fd);
    if (can) assert_true(direct >= 0);
    char *memory = aligned_alloc(DIRECT_ALIGN, ROOM);
    static const size_t begins[] = {0, 1, 4095, 4096, 4097, 12345, SIZE - 200, SIZE - 1};
    static const size_t lengths[] = {1, 77, 4095, 4096, 4097, 3 * DIRECT_ALIGN, 100000, SIZE};
    for (size_t i = 0; direct >= 0 && i < sizeof begins / sizeof *begins; i++) {
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            size_t at = begins[i], n = lengths[k], there = SIZE - at < n ? SIZE - at : n;
            memset(memory, 0xee, ROOM);
            assert_int_equal(direct_read(direct, at, memory + at, n), there);
            assert_memory_equal(memory + at, f.bytes + at, there);
        }
    }
    if (direct >= 0) {
        assert_int_equal(direct_read(direct, 50 * DIRECT_ALIGN, memory, 10), 0);
        close(direct);
    }
    assert_int_equal(direct_read(-1, 0, memory, 10), 0);
    free(memory);
    file_remove(&f);
    if (!can) skip();
}

static void files_in_the_cache_are_not_read_so(void **state)
{
    (void) state;
    struct file f;
    file_make(&f);
    char *copy = malloc(SIZE);
    assert_int_equal(pread(f.fd, copy, SIZE, 0), SIZE);
    bool tells = file_is_cached(&f);
    int direct = direct_open(f.path, f.fd);
    if (tells) assert_int_equal(direct, -1);
    if (direct >= 0) close(direct);
    free(copy);
    file_remove(&f);
    if (!tells) skip(); // a file system that doesn't say what it has
}

// Whoever opened a checkpoint goes on with that one, though its files were replaced meanwhile.
static void another_file_of_the_name_is_refused(void **state)
{
    (void) state;
    struct file f;
    char other[sizeof f.path + 8];
    file_make(&f);
    snprintf(other, sizeof other, "%s.new", f.path);
    int fd = open(other, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, f.bytes, SIZE), SIZE);
    close(fd);
    assert_int_equal(rename(other, f.path), 0);
    file_forget(&f);
    assert_int_equal(direct_open(f.path, f.fd), -1);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(direct_open(f.path, f.fd), -1);
    file_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_the_files),
        cmocka_unit_test(files_in_the_cache_are_not_read_so),
        cmocka_unit_test(another_file_of_the_name_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
