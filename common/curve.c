#include "common/curve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum status curve_make(struct curve_pair *p, struct error *e)
{
    if (zmq_curve_keypair(p->public_key, p->secret_key) == 0) return OK;
    return error_set(e, ERR_UNSUPPORTED, "no_curve", "this libzmq was built without CURVE");
}

// --- writing

// A file that was not there before, whole on the disk or not at all.
static enum status write_new(const char *path, mode_t mode, const char *text, struct error *e)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0 && errno == EEXIST) {
        return error_set(e, ERR_INPUT, "key_exists",
                         "%s is there already and is not overwritten: choose another name, or "
                         "remove it if nobody uses it", path);
    }
    size_t n = strlen(text);
    bool ok = fd >= 0 && fchmod(fd, mode) == 0 && write(fd, text, n) == (ssize_t) n &&
              fsync(fd) == 0;
    int why = errno;
    if (fd >= 0 && close(fd) != 0) ok = false;
    if (ok) return OK;
    if (fd >= 0) unlink(path);
    return error_set(e, ERR_IO, NULL, "cannot write %s: %s", path, strerror(why));
}

static enum status path_of(char path[PATH_MAX], const char *folder, const char *name,
                           const char *ending, struct error *e)
{
    if (snprintf(path, PATH_MAX, "%s/%s%s", folder, name, ending) < PATH_MAX) return OK;
    return error_set(e, ERR_INPUT, NULL, "the name of the key's file is too long");
}

enum status curve_write(const struct curve_pair *p, const char *folder, const char *name,
                        struct error *e)
{
    char secret[PATH_MAX], public[PATH_MAX], text[256];
    try(path_of(secret, folder, name, ".key", e));
    try(path_of(public, folder, name, ".pub", e));
    snprintf(text, sizeof text, "# public key of %.100s\npublic = %s\n", name, p->public_key);
    try(write_new(public, 0644, text, e));
    snprintf(text, sizeof text,
             "# secret key of %.100s: it never leaves its machine\nsecret = %s\n", name,
             p->secret_key);
    enum status status = write_new(secret, 0600, text, e);
    explicit_bzero(text, sizeof text);
    if (status != OK) unlink(public); // ours, made just now
    return status;
}

// --- reading

static bool is_key(const char *text, size_t n)
{
    uint8_t bytes[32];
    char copy[CURVE_SIZE];
    if (n != CURVE_TEXT) return false;
    memcpy(copy, text, CURVE_TEXT);
    copy[CURVE_TEXT] = '\0';
    bool ok = strspn(copy, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                           ".-:+=^!/*?&<>()[]{}@%$#") == CURVE_TEXT &&
              zmq_z85_decode(bytes, copy) != NULL;
    explicit_bzero(bytes, sizeof bytes);
    explicit_bzero(copy, sizeof copy);
    return ok;
}

static enum status read_line(FILE *f, const char *path, const char *what, char key[CURVE_SIZE],
                             struct error *e)
{
    char line[256], begins[16];
    size_t n = (size_t) snprintf(begins, sizeof begins, "%s = ", what);
    bool found = false;
    while (!found && fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\r\n")] = '\0';
        found = strncmp(line, begins, n) == 0 && is_key(line + n, strlen(line + n));
    }
    if (found) snprintf(key, CURVE_SIZE, "%s", line + n);
    explicit_bzero(line, sizeof line);
    if (found) return OK;
    return error_set(e, ERR_INPUT, "bad_key",
                     "%s has no line \"%s = KEY\" with a key of %d characters; penstock keygen "
                     "makes such files", path, what, CURVE_TEXT);
}

static enum status open_key(FILE **f, const char *path, struct stat *s, struct error *e)
{
    *f = fopen(path, "re");
    if (*f != NULL && fstat(fileno(*f), s) == 0 && S_ISREG(s->st_mode)) return OK;
    int why = *f == NULL ? errno : EINVAL;
    if (*f != NULL) fclose(*f);
    return error_set(e, ERR_IO, NULL, "cannot read the key %s: %s", path, strerror(why));
}

enum status curve_read_secret(struct curve_pair *p, const char *path, struct error *e)
{
    FILE *f;
    struct stat s;
    try(open_key(&f, path, &s, e));
    // First, so that nobody is told to hide a public key.
    enum status status = read_line(f, path, "secret", p->secret_key, e);
    if (status == OK && (s.st_mode & 077) != 0) {
        explicit_bzero(p->secret_key, sizeof p->secret_key);
        status = error_set(e, ERR_INPUT, "key_readable",
                           "the secret key %s can be read by others (mode %03o): chmod 600 %s",
                           path, (unsigned) s.st_mode & 0777, path);
    }
    fclose(f);
    if (status != OK) return status;
    if (zmq_curve_public(p->public_key, p->secret_key) == 0) return OK;
    return error_set(e, ERR_UNSUPPORTED, "no_curve", "this libzmq was built without CURVE");
}

enum status curve_read_public(char key[CURVE_SIZE], const char *path_or_key, struct error *e)
{
    FILE *f;
    struct stat s;
    if (is_key(path_or_key, strlen(path_or_key))) {
        snprintf(key, CURVE_SIZE, "%s", path_or_key);
        return OK;
    }
    try(open_key(&f, path_or_key, &s, e));
    enum status status = read_line(f, path_or_key, "public", key, e);
    fclose(f);
    return status;
}

// --- sockets

enum status curve_apply(void *socket, const struct curve_pair *p, const char *server_key,
                        struct error *e)
{
    int one = 1;
    bool ok = server_key != NULL
                  ? zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server_key, CURVE_SIZE) == 0
                  : zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &one, sizeof one) == 0;
    ok = ok && zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, p->public_key, CURVE_SIZE) == 0 &&
         zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, p->secret_key, CURVE_SIZE) == 0;
    if (ok) return OK;
    return error_set(e, ERR_UNSUPPORTED, "no_curve", "the socket takes no CURVE keys: %s",
                     zmq_strerror(errno));
}

bool curve_is_local(const char *endpoint)
{
    if (strncmp(endpoint, "ipc://", 6) == 0 || strncmp(endpoint, "inproc://", 9) == 0) return true;
    const char *from = strncmp(endpoint, "tcp://", 6) == 0 ? endpoint + 6 : endpoint;
    const char *colon = strcmp(from, "::1") == 0 ? NULL : strrchr(from, ':');
    size_t n = colon != NULL && from[strlen(from) - 1] != ']' ? (size_t) (colon - from)
                                                              : strlen(from);
    char host[INET_ADDRSTRLEN];
    struct in_addr a;
    if (n >= sizeof host) return false;
    memcpy(host, from, n);
    host[n] = '\0';
    if (strcmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0 || strcmp(host, "::1") == 0) {
        return true;
    }
    // A name that only begins like an address ("127.example") is another machine's.
    return inet_pton(AF_INET, host, &a) == 1 && ntohl(a.s_addr) >> 24 == IN_LOOPBACKNET;
}
