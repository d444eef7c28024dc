// penstock keygen: a CURVE key pair for a broker or a group.
#include "common/curve.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/outcome.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { NAME_MOST = 64 };

static enum status check_name(const char *name, struct error *e)
{
    size_t n = strlen(name);
    bool ok = n > 0 && n <= NAME_MOST && name[0] != '.' &&
              strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                           "0123456789._-") == n;
    if (ok) return OK;
    return error_set(e, ERR_INPUT, "bad_usage",
                     "NAME wants 1 to %d of A-Z a-z 0-9 . _ - and no dot in front", NAME_MOST);
}

static enum status make(const char *folder, const char *name, struct curve_pair *p, struct error *e)
{
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        return error_set(e, ERR_IO, NULL, "cannot make the folder %s: %s", folder, strerror(errno));
    }
    try(curve_make(p, e));
    return curve_write(p, folder, name, e);
}

int cmd_keygen(int argc, char **argv)
{
    const char *folder = ".", *name[1] = {NULL};
    bool json = false;
    struct option_spec specs[] = {
        {.name = "dir", .kind = OPTION_STRING, .value = &folder, .argument = "DIR",
         .help = "Where the two files are written (made if it is not there)."},
        {.name = "json", .kind = OPTION_FLAG, .value = &json, .help = "One JSON object on stdout."},
    };
    struct options o = {.program = "penstock keygen",
                        .usage = "[--dir DIR] NAME",
                        .about = "Makes a key pair: NAME.key is secret and stays on its machine, "
                                 "NAME.pub goes into the broker's --allow folder, or, of a "
                                 "broker, to the groups as --broker-key.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = name,
                        .max_positional = 1};
    struct error e = {0};
    struct curve_pair pair;
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (o.n_positional < 1) error_set(&e, ERR_INPUT, "bad_usage", "NAME is missing");
    if (e.status != OK || check_name(name[0], &e) != OK) return outcome_usage(o.program, &e);
    enum status status = make(folder, name[0], &pair, &e);
    explicit_bzero(pair.secret_key, sizeof pair.secret_key);
    if (status != OK) return outcome_failed(o.program, &e, json);
    if (json) {
        return outcome_json(json_pack("{s:s,s:s}", "name", name[0], "public", pair.public_key),
                            EXIT_DONE);
    }
    printf("%s/%s.key  secret: keep it where the program runs\n", folder, name[0]);
    printf("%s/%s.pub  public: %s\n", folder, name[0], pair.public_key);
    return EXIT_DONE;
}
