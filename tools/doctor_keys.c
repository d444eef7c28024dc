#include "common/curve.h"
#include "common/limits.h"
#include "tools/doctor.h"
#include "tools/fleet_view.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void check_secret(struct doctor *d, const char *path)
{
    struct stat s;
    struct curve_pair pair;
    struct error e = {0};
    if (stat(path, &s) != 0) {
        doctor_find(d, false, "key", "penstock keygen makes one", "%s is not there", path);
        return;
    }
    if ((s.st_mode & 077) != 0) {
        doctor_find(d, false, "key", "chmod 600 it", "%s has mode %03o", path,
                    (unsigned) s.st_mode & 0777);
        return;
    }
    bool good = curve_read_secret(&pair, path, &e) == OK;
    explicit_bzero(pair.secret_key, sizeof pair.secret_key);
    doctor_find(d, good, "key", "penstock keygen makes one", "%s %s", path,
                good ? "is a secret key that only its owner reads" : e.text);
}

// --- the allow-list

struct keys {
    char at[ALLOW_KEYS_MAX][CURVE_SIZE];
    int n;
};

static bool has(const struct keys *k, const char *key)
{
    for (int i = 0; i < k->n; i++) {
        if (strcmp(k->at[i], key) == 0) return true;
    }
    return false;
}

static bool is_used(const struct doctor *d, const char *key)
{
    size_t i, n;
    json_t *model, *g;
    json_array_foreach(json_object_get(d->fleet, "models"), i, model) {
        json_array_foreach(json_object_get(model, "groups"), n, g) {
            if (strcmp(fleet_text(g, "key"), key) == 0) return true;
        }
    }
    return false;
}

static void read_key(struct doctor *d, const char *folder, const char *name, struct keys *k)
{
    char path[PATH_MAX], key[CURVE_SIZE];
    struct error e = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (curve_read_public(key, path, &e) != OK) {
        doctor_find(d, false, "allow", "copy the .pub file again, or remove it", "%s", e.text);
        return;
    }
    if (k->n < ALLOW_KEYS_MAX) memcpy(k->at[k->n++], key, sizeof key);
    // A key in reserve is no fault.
    if (d->fleet != NULL && !is_used(d, key)) {
        doctor_find(d, true, "allow", "", "%s: no group that is there has this key", path);
    }
}

static void check_groups(struct doctor *d, const struct keys *k)
{
    size_t i, n;
    json_t *model, *g;
    json_array_foreach(json_object_get(d->fleet, "models"), i, model) {
        json_array_foreach(json_object_get(model, "groups"), n, g) {
            const char *key = fleet_text(g, "key");
            if (key[0] != '\0' && has(k, key)) continue;
            doctor_find(d, false, "group's key",
                        key[0] == '\0' ? "start broker and groups with keys (penstock keygen)"
                                       : "put its .pub file into the broker's folder, or stop it",
                        "%.64s %s", fleet_text(g, "name"),
                        key[0] == '\0' ? "is connected without a key"
                                       : "has a key that is not in this folder");
        }
    }
}

static void check_allow(struct doctor *d, const char *folder)
{
    static struct keys keys;
    keys.n = 0;
    DIR *dir = opendir(folder);
    if (dir == NULL) {
        doctor_find(d, false, "allow", "make the folder, and let the broker's user read it",
                    "%s cannot be read: %s", folder, strerror(errno));
        return;
    }
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        size_t n = strlen(entry->d_name);
        if (n > 4 && strcmp(entry->d_name + n - 4, ".pub") == 0) {
            read_key(d, folder, entry->d_name, &keys);
        }
    }
    closedir(dir);
    doctor_find(d, keys.n > 0, "allow", "put the groups' .pub files there (penstock keygen)",
                "%s has %d keys", folder, keys.n);
    check_groups(d, &keys);
}

void doctor_keys(struct doctor *d, const char *key, const char *allow)
{
    if (key != NULL) check_secret(d, key);
    if (allow != NULL) check_allow(d, allow);
}
