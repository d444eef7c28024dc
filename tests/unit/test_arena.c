#include "common/arena.h"
#include "common/handover.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MIB_BYTES = 1 << 20 };

// Pages of the range that are in memory.
static size_t resident(const struct arena *a)
{
    size_t page = (size_t) sysconf(_SC_PAGESIZE), n = a->mapped / page, found = 0;
    unsigned char *in = calloc(n, 1);
    assert_int_equal(mincore(a->base, a->mapped, in), 0);
    for (size_t i = 0; i < n; i++) found += in[i] & 1;
    free(in);
    return found * page;
}

static void an_arena_is_there_whole(void **state)
{
    (void) state;
    static const uint64_t sizes[] = {0, 1, 4096, 4097, 3 * MIB_BYTES, 16 * MIB_BYTES + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct arena *a;
        struct error e;
        assert_int_equal(arena_create(&a, sizes[i], "a test", &e), OK);
        assert_int_equal(a->bytes, sizes[i]);
        assert_true(a->mapped >= sizes[i] && a->huge_bytes <= a->mapped);
        assert_true((a->huge_bytes > 0) == (a->pages != ARENA_SMALL));
        assert_int_equal(resident(a), a->mapped);
        for (uint64_t at = 0; at < sizes[i]; at++) assert_int_equal(a->base[at], 0);
        memset(a->base, 7, sizes[i]);
        print_message("# %llu bytes: %s pages, locked: %d\n", (unsigned long long) sizes[i],
                      arena_pages_name(a->pages), a->locked);
        arena_release(a);
    }
    arena_release(NULL);
}

static void the_last_holder_gives_it_back(void **state)
{
    (void) state;
    struct arena *a;
    struct error e;
    assert_int_equal(arena_create(&a, 8192, "a test", &e), OK);
    char *base = a->base;
    unsigned char in[2];
    arena_hold(a);
    arena_release(a);
    base[8191] = 1;
    assert_int_equal(mincore(base, 8192, in), 0);
    arena_release(a);
    assert_int_equal(mincore(base, 8192, in), -1); // not mapped
}

// Memory that is not there is refused, and what it was for is named.
static void what_is_not_there_is_refused(void **state)
{
    (void) state;
    struct arena *a;
    struct error e;
    assert_int_equal(arena_create(&a, UINT64_C(1) << 60, "rank 3's device", &e), ERR_NOMEM);
    assert_null(a);
    assert_string_equal(e.code, "does_not_fit");
    assert_non_null(strstr(e.text, "rank 3's device"));
    assert_non_null(strstr(e.text, "1152921504606846976 bytes"));
}

// Without the right to lock it, it is there all the same, and says so.
static void a_limit_on_locked_memory_is_no_failure(void **state)
{
    (void) state;
#if defined(__SANITIZE_ADDRESS__) || defined(PENSTOCK_TSAN)
    skip(); // the sanitizers' mlock says yes and does nothing
#endif
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0, 0};
        struct arena *a;
        struct error e;
        bool root = geteuid() == 0; // whom no limit binds
        bool ok = setrlimit(RLIMIT_MEMLOCK, &none) == 0 &&
                  (!root || (setgid(65534) == 0 && setuid(65534) == 0)) &&
                  arena_create(&a, MIB_BYTES, "a test", &e) == OK;
        _exit(!ok ? 2 : a->locked ? 1 : 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 2) skip(); // a sandbox whose root may not change users
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_arena_is_there_whole),
        cmocka_unit_test(the_last_holder_gives_it_back),
        cmocka_unit_test(what_is_not_there_is_refused),
        cmocka_unit_test(a_limit_on_locked_memory_is_no_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
