// The groups of all models: the ROUTER through which they are spoken to, and who among them belongs
// to which model's site. The loop's thread. Knows no jobs: whatever a head says about them is
// handed on.
#ifndef PENSTOCK_BROKER_GROUPS_H
#define PENSTOCK_BROKER_GROUPS_H

#include "broker/allow.h"
#include "broker/fleet.h"
#include "broker/fleet_record.h"
#include "broker/model.h"
#include "common/plan.h"
#include "common/wire.h"

#include <stdbool.h>

struct groups;
struct site;

enum groups_precision { GROUPS_AUTO, GROUPS_F32, GROUPS_BF16 };

struct groups_options {
    const struct models *models; // borrowed
    void *socket;              // a ROUTER with the options of wire_socket_init; borrowed
    const struct allow *allow; // keys of groups; NULL: plain; borrowed
    struct fleet_record *record; // hears what groups report; NULL: nobody does; borrowed
    enum groups_precision precision; // auto: what the groups prefer, f32 if any of them does
    bool fp8_kv;     // of all models
    int n_pipelines; // most of each model; 0: as many as the groups allow
    int n_spares;    // groups of each model kept idle before a further pipeline is formed
    int tp;                   // ranks of each group; 0: as the first one has
    int slots, max_context, max_rows, chunk, kv_blocks; // 0: chosen
    int fill_ms, step_ms;     // of the heads' schedulers: workers/sched.h
    void *arg;
    void (*planned)(void *arg, int model, const struct plan *plan);
    // A pipeline of this model serves. adopted: an earlier broker set it up; its head will say
    // HELLO again.
    void (*up)(void *arg, int model, const struct plan *plan, const struct pipeline *p,
               const struct group *head, bool adopted);
    // The others name a pipeline by its epoch.
    void (*down)(void *arg, uint64_t epoch);
    // A group of it wants to leave: send it no more jobs, and call groups_drained when none runs.
    // Said again and again.
    void (*draining)(void *arg, uint64_t epoch);
    void (*head_hello)(void *arg, uint64_t epoch, const struct peer *head,
                       const struct wire_hello *h);
    void (*message)(void *arg, const struct peer *from, const struct wire_message *m);
};

enum status groups_create(struct groups **groups, const struct groups_options *o, struct error *e);
void groups_destroy(struct groups **groups);

// The broker's term is known: from here on groups are answered.
void groups_start(struct groups *g, uint64_t term, int64_t now_ms);

// What has come in, up to a bound. False: there may be more.
bool groups_receive(struct groups *g, int64_t now_ms);

// The allow-list has changed: groups whose key is not on it any more are lost.
void groups_recheck(struct groups *g);

void groups_tick(struct groups *g, int64_t now_ms); // a few times a second

bool groups_send(struct groups *g, const struct peer *to, const struct wire_message *m);

void groups_drained(struct groups *g, uint64_t epoch);

// True while a fresh broker may still find running attempts of an earlier one.
bool groups_adopting(const struct groups *g, int64_t now_ms);

// A model's site, for reports. Its header is site.h.
const struct site *groups_site(const struct groups *g, int model);

#endif
