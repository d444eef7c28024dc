#include "workers/kv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_reserve_is_all_or_nothing(void **state)
{
    (void) state;
    int32_t storage[8], a[5], b[4];
    struct kv kv;
    kv_init(&kv, storage, 8);
    assert_int_equal(kv_reserve(&kv, 5, a), OK);
    assert_int_equal(kv_reserve(&kv, 4, b), ERR_NOMEM);
    assert_int_equal(kv.n_free, 3);
    kv_release(&kv, 5, a);
    assert_int_equal(kv.n_free, 8);
}

// Random traffic never hands out a block twice.
static void test_no_block_has_two_owners(void **state)
{
    (void) state;
    enum { BLOCKS = 100, OWNERS = 20, MOST = 12 };
    int32_t storage[BLOCKS], held[OWNERS][MOST];
    int n_held[OWNERS] = {0};
    bool out[BLOCKS] = {false};
    struct kv kv;
    kv_init(&kv, storage, BLOCKS);
    uint32_t r = 1;
    for (int i = 0; i < 20000; i++) {
        r = r * 1664525u + 1013904223u;
        int o = (int) (r >> 8) % OWNERS, n = 1 + (int) (r >> 20) % MOST;
        if (n_held[o] > 0) {
            for (int j = 0; j < n_held[o]; j++) out[held[o][j]] = false;
            kv_release(&kv, n_held[o], held[o]);
            n_held[o] = 0;
        } else if (kv_reserve(&kv, n, held[o]) == OK) {
            n_held[o] = n;
            for (int j = 0; j < n; j++) {
                assert_in_range(held[o][j], 0, BLOCKS - 1);
                assert_false(out[held[o][j]]);
                out[held[o][j]] = true;
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reserve_is_all_or_nothing),
        cmocka_unit_test(test_no_block_has_two_owners),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
