#include "common/direct.h"

#include "common/clock.h"
#include "common/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SAMPLES = 16 };

// By samples at random places, since the question may bring a page there: the next to ask shall
// not meet it.
static bool mostly_cached(int fd, uint64_t size)
{
    uint64_t random = (uint64_t) clock_ns();
    int n = 0;
    for (int i = 0; size > 0 && i < SAMPLES; i++) {
        char byte;
        struct iovec to = {&byte, 1};
        random = random * 6364136223846793005u + 1442695040888963407u; // Knuth, MMIX
        n += preadv2(fd, &to, 1, (off_t) ((random >> 20) % size), RWF_NOWAIT) == 1;
    }
    return 2 * n > SAMPLES;
}

// A disk may have larger blocks than DIRECT_ALIGN: then each read would fail.
static bool reads_blocks(int direct)
{
    _Alignas(DIRECT_ALIGN) char block[DIRECT_ALIGN];
    ssize_t got;
    do {
        got = pread(direct, block, sizeof block, 0);
    } while (got < 0 && errno == EINTR);
    return got >= 0;
}

int direct_open(const char *path, int fd)
{
    struct stat was, is;
    if (fstat(fd, &was) != 0 || mostly_cached(fd, (uint64_t) was.st_size)) return -1;
    int direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
    if (direct < 0) return -1;
    bool same = fstat(direct, &is) == 0 && was.st_dev == is.st_dev && was.st_ino == is.st_ino;
    if (same && reads_blocks(direct)) return direct;
    close(direct);
    return -1;
}

size_t direct_read(int fd, uint64_t offset, void *to, size_t n)
{
    size_t before = offset % DIRECT_ALIGN, want = direct_aligned(before + n), done = 0;
    char *block = (char *) to - before;
    check((uintptr_t) block % DIRECT_ALIGN == 0, "offset %zu of a block, but address %zu", before,
          (size_t) ((uintptr_t) to % DIRECT_ALIGN));
    while (done < before + n && done % DIRECT_ALIGN == 0) {
        ssize_t got = pread(fd, block + done, want - done, (off_t) (offset - before + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        done += (size_t) got;
    }
    if (done <= before) return 0;
    return done - before < n ? done - before : n;
}
