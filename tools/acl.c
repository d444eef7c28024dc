#include "tools/acl.h"

#include "broker/queue_lua.h"
#include "common/status.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const char *const NAMES[] = {"producer", "broker", "viewer"};

const char *acl_role_name(enum acl_role role) { return NAMES[role]; }

static void add(char rules[ACL_RULES_MAX], const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void add(char rules[ACL_RULES_MAX], const char *format, ...)
{
    size_t n = strlen(rules);
    va_list args;
    va_start(args, format);
    int more = vsnprintf(rules + n, ACL_RULES_MAX - n, format, args);
    va_end(args);
    check(more > 0 && n + (size_t) more < ACL_RULES_MAX);
}

// A lower-case command as a rule, once.
static void add_command(char rules[ACL_RULES_MAX], const char *name)
{
    char rule[32];
    size_t n = (size_t) snprintf(rule, sizeof rule, " +%s", name);
    for (const char *at = strstr(rules, rule); at != NULL; at = strstr(at + 1, rule)) {
        if (at[n] == ' ' || at[n] == '\0') return;
    }
    add(rules, "%s", rule);
}

// What the functions call, since Redis checks the caller's rights inside them, too. The library
// writes every call as call('NAME', ...); selftest holds a table of them: {'NAME', ...}.
static void add_called(char rules[ACL_RULES_MAX])
{
    const char *text = (const char *) queue_lua, *end = text + queue_lua_size;
    for (const char *p = text; p + 2 < end; p++) {
        bool called = p - text >= 4 && memcmp(p - 4, "call(", 5) == 0;
        if ((!called && p[0] != '{') || p[1] != '\'') continue;
        char name[24];
        size_t n = 0;
        const char *q = p + 2;
        while (q < end && isupper((unsigned char) *q) && n + 1 < sizeof name) {
            name[n++] = (char) tolower((unsigned char) *q++);
        }
        name[n] = '\0';
        if (n >= 3 && q < end && *q == '\'') add_command(rules, name);
    }
}

void acl_rules(enum acl_role role, const char *queue, const char *tenant, int db,
               char rules[ACL_RULES_MAX])
{
    static const char *const reads[] = {
        "fcall_ro", "get",  "strlen", "exists", "type",   "ttl",   "pttl",      "hget",   "hmget",
        "hgetall",  "hkeys", "hlen",  "hexists", "hstrlen", "llen", "lindex",   "lrange", "zcard",
        "zscore",   "zrank", "zrange", "zcount", "xlen",  "xrange", "xrevrange", "xread",
    };
    rules[0] = '\0';
    add(rules, "reset on");
    switch (role) {
    case ACL_PRODUCER: // each command on its keys alone
        add(rules, " +ping (+rpush ~ps:{%s}:in:%s) (+get ~ps:{%s}:r:%s:*)", queue, tenant, queue,
            tenant);
        add(rules, " (+xread +xrange +xrevrange ~ps:{%s}:ev:%s ~ps:{%s}:t:%s:*)", queue, tenant,
            queue, tenant);
        return;
    case ACL_BROKER:
        // Redis compares what PSUBSCRIBE asks for with this as text: a wider pattern won't do.
        add(rules, " ~ps:{%s}:* resetchannels &__keyspace@%d__:ps:{%s}:in:*", queue, db, queue);
        add(rules, " +ping +hello +select +info +time +psubscribe +config|get +acl|whoami");
        // fcall_ro is for people who look at the queue, or pause it, as this user.
        add(rules, " +function|load +function|list +fcall +fcall_ro");
        add_called(rules);
        return;
    case ACL_VIEWER:
        add(rules, " %%R~ps:{%s}:* resetchannels +ping +hello +info +time +acl|whoami", queue);
        add(rules, " +function|list");
        for (size_t i = 0; i < sizeof reads / sizeof *reads; i++) add(rules, " +%s", reads[i]);
        return;
    case ACL_ROLES: break;
    }
    check(false, "role %d", (int) role);
}
