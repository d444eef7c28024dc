// penstock acl: Redis users for producer, broker and viewer, ready for redis-cli.
#include "common/options.h"
#include "tools/acl.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

enum { PASSWORD_BYTES = 24, USER_MAX = 32 + QUEUE_NAME_MAX + TENANT_MAX };

static void user_name(enum acl_role role, const struct queue_flags *f, char name[USER_MAX])
{
    snprintf(name, USER_MAX, "%s-%s%s%s", acl_role_name(role), f->queue,
             role == ACL_PRODUCER ? "-" : "", role == ACL_PRODUCER ? f->tenant : "");
}

static void random_password(char text[2 * PASSWORD_BYTES + 1])
{
    unsigned char bytes[PASSWORD_BYTES];
    check(getrandom(bytes, sizeof bytes, 0) == sizeof bytes, "no random numbers");
    for (int i = 0; i < PASSWORD_BYTES; i++) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static bool wanted(enum acl_role role, const char *const *roles, int n)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(roles[i], acl_role_name(role)) == 0) return true;
    }
    return n == 0;
}

static enum status check_arguments(const struct queue_flags *f, const char *const *roles, int n,
                                   struct error *e)
{
    try(redis_name_check("name of the queue", f->queue, QUEUE_NAME_MAX, e));
    try(redis_name_check("tenant", f->tenant, TENANT_MAX, e));
    for (int i = 0; i < n; i++) {
        bool known = false;
        for (int r = 0; r < ACL_ROLES; r++) {
            known = known || strcmp(roles[i], acl_role_name((enum acl_role) r)) == 0;
        }
        if (!known) {
            return error_set(e, ERR_INPUT, "bad_usage",
                             "\"%s\" is no role: producer, broker or viewer", roles[i]);
        }
    }
    return OK;
}

int cmd_acl(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    const char *roles[ACL_ROLES] = {NULL};
    bool no_passwords = false;
    int64_t db = 0;
    struct option_spec specs[] = {
        {.name = "queue", .kind = OPTION_STRING, .value = &flags.queue, .argument = "NAME",
         .help = "Queue (default $PENSTOCK_QUEUE, else default)."},
        {.name = "tenant", .kind = OPTION_STRING, .value = &flags.tenant, .argument = "NAME",
         .help = "The producer's (default $PENSTOCK_TENANT, else default)."},
        {.name = "db", .kind = OPTION_INT, .value = &db, .argument = "N",
         .help = "Database of the queue in Redis.", .least = 0, .most = 65535},
        {.name = "no-passwords", .kind = OPTION_FLAG, .value = &no_passwords,
         .help = "Without >PASSWORD: the users can't log in until one is set."},
    };
    struct options o = {.program = "penstock acl",
                        .usage = "[producer] [broker] [viewer] [OPTIONS]",
                        .about = "Prints ACL SETUSER lines for redis-cli, with fresh random "
                                 "passwords: penstock acl | redis-cli. Keep what it prints: the "
                                 "passwords are stored nowhere.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = roles,
                        .max_positional = ACL_ROLES};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (check_arguments(&flags, roles, o.n_positional, &e) != OK) {
        return outcome_usage(o.program, &e);
    }
    for (int r = 0; r < ACL_ROLES; r++) {
        char rules[ACL_RULES_MAX], name[USER_MAX], password[2 * PASSWORD_BYTES + 1];
        if (!wanted((enum acl_role) r, roles, o.n_positional)) continue;
        acl_rules((enum acl_role) r, flags.queue, flags.tenant, (int) db,
                  rules);
        user_name((enum acl_role) r, &flags, name);
        random_password(password);
        printf("ACL SETUSER %s %s%s%s\n", name, rules, no_passwords ? "" : " >",
               no_passwords ? "" : password);
    }
    return EXIT_DONE;
}
