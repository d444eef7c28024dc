// What Redis says, read: replies of each form, of other forms, damaged, and of servers that are too
// old.
#include "broker/queue_reply.h"

#include "broker/queue_server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

static redisReply *reply_of(const char *bytes, size_t n)
{
    redisReader *reader = redisReaderCreate();
    void *reply = NULL;
    redisReaderFeed(reader, bytes, n);
    redisReaderGetReply(reader, &reply);
    redisReaderFree(reader);
    return reply;
}

static void servers_that_are_too_old(void **state)
{
    (void) state;
    static const struct {
        const char *reply, *code;
    } cases[] = {
        {"*4\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$4\r\nrole\r\n$6\r\nmaster\r\n", ""},
        {"*2\r\n$7\r\nversion\r\n$6\r\n10.0.0\r\n", ""},
        {"*2\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n", "redis_too_old"},
        {"-ERR unknown command `HELLO`\r\n", "redis_too_old"},
        {"-NOAUTH HELLO must be called with the client already authenticated\r\n", "redis_login"},
        {"*4\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n$4\r\nrole\r\n$7\r\nreplica\r\n", "redis_replica"},
        {"+OK\r\n", "redis_reply"},
        {"*1\r\n$7\r\nversion\r\n", "redis_reply"},
        {"*2\r\n$7\r\nversion\r\n:7\r\n", "redis_reply"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error e = {0};
        redisReply *r = reply_of(cases[i].reply, strlen(cases[i].reply));
        assert_non_null(r);
        enum status status = queue_server_hello(r, &e);
        assert_string_equal(e.code, cases[i].code);
        assert_int_equal(status == OK, cases[i].code[0] == '\0');
        freeReplyObject(r);
    }
}

static const char *const honest[] = {
    [QUEUE_FORM_WORD] = "$2\r\nok\r\n",
    [QUEUE_FORM_NUMBER] = "*2\r\n$5\r\nretry\r\n:17\r\n",
    [QUEUE_FORM_SAVED] = "*3\r\n$2\r\nok\r\n:8\r\n:5\r\n",
    [QUEUE_FORM_CANCEL] = "*3\r\n$7\r\nrunning\r\n$1\r\n4\r\n$4\r\nhead\r\n",
    [QUEUE_FORM_MESSAGES] = "*2\r\n:3\r\n*4\r\n$1\r\nt\r\n$1\r\n1\r\n:2\r\n$2\r\nxy\r\n",
    [QUEUE_FORM_HEADERS] =
        "*1\r\n*9\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n$1\r\n4\r\n$1\r\n0\r\n"
        "$1\r\n0\r\n$1\r\n0\r\n$1\r\n5\r\n",
    [QUEUE_FORM_JOBS] =
        "*2\r\n*3\r\n$4\r\ngone\r\n$1\r\nt\r\n$1\r\na\r\n*22\r\n$2\r\nok\r\n$1\r\nt\r\n"
        "$1\r\nb\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\nm\r\n$0\r\n\r\n$1\r\n1\r\n$1\r\n0\r\n"
        "$1\r\n0\r\n$1\r\n3\r\n$1\r\n5\r\n$1\r\n6\r\n$1\r\n7\r\n$1\r\n8\r\n$1\r\n0\r\n"
        "$1\r\n9\r\n$1\r\n0\r\n$1\r\n1\r\n$0\r\n\r\n$1\r\nb\r\n$5\r\n1 0 2\r\n",
    [QUEUE_FORM_RENEWED] = "*1\r\n*5\r\n$2\r\nok\r\n$1\r\nt\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\n3\r\n",
    [QUEUE_FORM_VERDICTS] =
        "*1\r\n*5\r\n$5\r\nready\r\n$1\r\nt\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\ng\r\n",
    [QUEUE_FORM_STATS] = "*4\r\n$4\r\nterm\r\n$1\r\n1\r\n$5\r\ninbox\r\n:4\r\n",
    [QUEUE_FORM_TENANTS] =
        "*2\r\n:0\r\n*7\r\n$1\r\nt\r\n$1\r\n1\r\n$1\r\n0\r\n$1\r\n0\r\n$1\r\n0\r\n:1\r\n"
        "$1\r\n9\r\n",
    [QUEUE_FORM_PAUSES] = "*1\r\n*2\r\n$5\r\nmodel\r\n$1\r\n2\r\n",
    [QUEUE_FORM_JOINS] = "*1\r\n*4\r\n$1\r\nt\r\n$1\r\np\r\n$1\r\n1\r\n$2\r\n12\r\n",
    [QUEUE_FORM_GATHER] =
        "*5\r\n$2\r\nok\r\n$1\r\nm\r\n$0\r\n\r\n*2\r\n$1\r\n1\r\n$1\r\nr\r\n"
        "*2\r\n$1\r\n2\r\n$-1\r\n",
};
enum { N_FORMS = sizeof honest / sizeof *honest };

static enum status decode(int form, const char *bytes, size_t n)
{
    struct queue_reply reply;
    void *storage;
    redisReply *r = reply_of(bytes, n);
    if (r == NULL) return ERR_UNAVAILABLE;
    enum status status = queue_reply_decode((enum queue_form) form, 0, r, &reply, &storage);
    assert_int_equal(reply.error.status, status);
    if (status != OK) assert_int_equal(reply.n, 0);
    free(storage);
    freeReplyObject(r);
    return status;
}

static void replies_of_another_form_are_refused(void **state)
{
    (void) state;
    static const char *const odd[] = {
        "$-1\r\n",
        ":-1\r\n",
        "*-1\r\n",
        "$5\r\nno_ok\r\n",
        "*1\r\n$-1\r\n",
        "*2\r\n:1\r\n:2\r\n",
        "*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        "*3\r\n$7\r\nrunning\r\n$2\r\n-1\r\n$4\r\nhead\r\n",
        "*2\r\n$5\r\nretry\r\n$20\r\n99999999999999999999\r\n",
        ("*1\r\n*8\r\n$0\r\n\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n$1\r\n4\r\n$1\r\n0\r\n$1\r\n0\r\n"
         "$1\r\n0\r\n"),
        "*2\r\n:3\r\n*4\r\n$1\r\nt\r\n$1\r\n1\r\n:3\r\n$2\r\nxy\r\n", // another size than it says
    };
    for (int form = 0; form < N_FORMS; form++) {
        assert_int_equal(decode(form, honest[form], strlen(honest[form])), OK);
        for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
            enum status status = decode(form, odd[i], strlen(odd[i]));
            bool lenient = form == QUEUE_FORM_STATS; // any words
            if (!lenient) assert_int_not_equal(status, OK);
        }
        for (int other = 0; other < N_FORMS; other++) {
            bool alike = form == QUEUE_FORM_STATS || other == form ||
                         (form == QUEUE_FORM_VERDICTS && other == QUEUE_FORM_RENEWED);
            enum status status = decode(form, honest[other], strlen(honest[other]));
            if (!alike && status == OK) fail_msg("form %d took a reply of form %d", form, other);
        }
    }
}

// One byte changed anywhere: refused or read, never out of bounds (the sanitizers watch).
static void damaged_replies_do_no_harm(void **state)
{
    (void) state;
    char bytes[1024];
    for (int form = 0; form < N_FORMS; form++) {
        size_t n = strlen(honest[form]);
        for (size_t at = 0; at < n; at++) {
            for (int c = 0; c < 256; c += 5) {
                memcpy(bytes, honest[form], n);
                bytes[at] = (char) c;
                decode(form, bytes, n);
            }
        }
    }
}

static void an_array_of_another_length_than_asked_is_refused(void **state)
{
    (void) state;
    struct queue_reply reply;
    void *storage;
    const char *bytes = honest[QUEUE_FORM_RENEWED];
    redisReply *r = reply_of(bytes, strlen(bytes));
    assert_int_equal(queue_reply_decode(QUEUE_FORM_RENEWED, 1, r, &reply, &storage), OK);
    free(storage);
    assert_int_equal(queue_reply_decode(QUEUE_FORM_RENEWED, 2, r, &reply, &storage), ERR_IO);
    free(storage);
    freeReplyObject(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(servers_that_are_too_old),
        cmocka_unit_test(replies_of_another_form_are_refused),
        cmocka_unit_test(damaged_replies_do_no_harm),
        cmocka_unit_test(an_array_of_another_length_than_asked_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
