#include "common/curve.h"

#include "tests/support/command.h"
#include "tests/support/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[FOLDER_SIZE];
static struct error e;

static const char *path(const char *name)
{
    static char p[128];
    snprintf(p, sizeof p, "%s/%s", folder, name);
    return p;
}

static void write_file(const char *name, const char *text, mode_t mode)
{
    FILE *f = fopen(path(name), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path(name), mode), 0);
}

static unsigned mode_of(const char *name)
{
    struct stat s;
    assert_int_equal(stat(path(name), &s), 0);
    return s.st_mode & 0777;
}

static int setup(void **state)
{
    (void) state;
    e = (struct error){0};
    return 0;
}

static void a_pair_is_written_and_read(void **state)
{
    (void) state;
    struct curve_pair made, read;
    char public_key[CURVE_SIZE];
    assert_int_equal(curve_make(&made, &e), OK);
    assert_int_equal(curve_write(&made, folder, "broker", &e), OK);
    assert_int_equal(mode_of("broker.key"), 0600);
    assert_int_equal(mode_of("broker.pub"), 0644);
    assert_int_equal(curve_read_secret(&read, path("broker.key"), &e), OK);
    assert_string_equal(read.secret_key, made.secret_key);
    assert_string_equal(read.public_key, made.public_key);
    assert_int_equal(curve_read_public(public_key, path("broker.pub"), &e), OK);
    assert_string_equal(public_key, made.public_key);
    assert_int_equal(curve_read_public(public_key, made.public_key, &e), OK);
    assert_string_equal(public_key, made.public_key);
}

static void nothing_is_overwritten(void **state)
{
    (void) state;
    struct curve_pair p;
    char before[CURVE_SIZE], after[CURVE_SIZE];
    assert_int_equal(curve_make(&p, &e), OK);
    assert_int_equal(curve_read_public(before, path("broker.pub"), &e), OK);
    assert_int_equal(curve_write(&p, folder, "broker", &e), ERR_INPUT);
    assert_string_equal(e.code, "key_exists");
    assert_int_equal(curve_read_public(after, path("broker.pub"), &e), OK);
    assert_string_equal(before, after);
    // Only the secret one is there: the public one that is made first goes again.
    write_file("half.key", "", 0600);
    assert_int_equal(curve_write(&p, folder, "half", &e), ERR_INPUT);
    assert_int_not_equal(access(path("half.pub"), F_OK), 0);
}

static void bad_files_are_refused_by_name(void **state)
{
    (void) state;
#define KEY "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7" // of the specification of ZeroMQ's CURVE
    static const struct {
        const char *text;
        mode_t mode;
        bool ok;
        const char *code;
    } cases[] = {
        {"secret = " KEY "\n", 0600, true, ""},
        {"# remark\n\nsecret = " KEY "\r\n", 0400, true, ""},
        {"secret = " KEY, 0600, true, ""},
        {"secret = " KEY "\n", 0640, false, "key_readable"},
        {"secret = " KEY "\n", 0604, false, "key_readable"},
        {"public = " KEY "\n", 0600, false, "bad_key"},
        {"public = " KEY "\n", 0644, false, "bad_key"},
        {"secret = " KEY "x\n", 0600, false, "bad_key"},
        {"secret = short\n", 0600, false, "bad_key"},
        {"secret = rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf~\n", 0600, false, "bad_key"},
        {"", 0600, false, "bad_key"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct curve_pair p;
        e = (struct error){0};
        write_file("case.key", cases[i].text, cases[i].mode);
        enum status status = curve_read_secret(&p, path("case.key"), &e);
        if ((status == OK) != cases[i].ok || strcmp(e.code, cases[i].code) != 0) {
            fail_msg("case %zu: %s %s", i, e.code, e.text);
        }
        if (status != OK) assert_non_null(strstr(e.text, "case.key"));
        assert_int_equal(unlink(path("case.key")), 0);
    }
    struct curve_pair p;
    char key[CURVE_SIZE];
    assert_int_equal(curve_read_secret(&p, path("absent.key"), &e), ERR_IO);
    // No key has a _: names of 40 characters may be keys.
    assert_int_equal(curve_read_public(key, path("not_there.pub"), &e), ERR_IO);
    assert_int_equal(mkdir(path("a_folder"), 0700), 0);
    assert_int_equal(curve_read_public(key, path("a_folder"), &e), ERR_IO);
}

static void what_is_local(void **state)
{
    (void) state;
    static const struct {
        const char *endpoint;
        bool local;
    } cases[] = {
        {"tcp://127.0.0.1:7300", true}, {"tcp://127.9.9.9:1", true}, {"tcp://localhost:7300", true},
        {"tcp://[::1]:7300", true},     {"127.0.0.1", true},         {"::1", true},
        {"ipc:///tmp/x", true},         {"inproc://x", true},        {"tcp://10.0.0.1:7300", false},
        {"tcp://0.0.0.0:7300", false},  {"tcp://*:7300", false},     {"10.1.2.3", false},
        {"tcp://localhost.example:1", false}, {"tcp://[::]:1", false}, {"", false},
        {"tcp://127.example:1", false}, {"tcp://127.0.0.1.example:1", false}, {"127.x", false},
        {"tcp://127.0.0.1:0;10.0.0.1:7300", false}, // libzmq's source;destination
        {"tcp://127.0.0.1:*", true}, {"[::1]", true}, {"localhost", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (curve_is_local(cases[i].endpoint) != cases[i].local) fail_msg("%s", cases[i].endpoint);
    }
}

static void keygen_makes_them(void **state)
{
    (void) state;
    static struct command c;
    struct curve_pair p;
    char dir[160];
    snprintf(dir, sizeof dir, "%s/keys", folder);
    assert_int_equal(command_run(&c, cmd_keygen, NULL, "keygen", "--dir", dir, "node-1"), 0);
    assert_int_equal(curve_read_secret(&p, path("keys/node-1.key"), &e), OK);
    assert_non_null(strstr(c.out_text, p.public_key));
    assert_null(strstr(c.out_text, p.secret_key));
    assert_int_equal(command_run(&c, cmd_keygen, NULL, "keygen", "--dir", dir, "node-1"), 1);
    assert_non_null(strstr(c.err_text, "not overwritten"));
    assert_int_equal(command_run(&c, cmd_keygen, NULL, "keygen"), 2);
    assert_int_equal(command_run(&c, cmd_keygen, NULL, "keygen", "../x"), 2);
    assert_int_equal(command_run(&c, cmd_keygen, NULL, "keygen", ".x"), 2);
    assert_int_equal(command_run(&c, cmd_keygen, NULL, "keygen", "--help"), 0);
}

static int make_folder(void **state)
{
    (void) state;
    folder_make(folder, "curve");
    return 0;
}

static int remove_folder(void **state)
{
    (void) state;
    folder_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_pair_is_written_and_read, setup),
        cmocka_unit_test_setup(nothing_is_overwritten, setup),
        cmocka_unit_test_setup(bad_files_are_refused_by_name, setup),
        cmocka_unit_test_setup(what_is_local, setup),
        cmocka_unit_test_setup(keygen_makes_them, setup),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
