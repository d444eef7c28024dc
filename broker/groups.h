// The groups and the pipeline they form: who said HELLO and fits the model, the plan, the fleet
// that carries it out, and the ROUTER they are spoken to through. The loop's thread. Knows no jobs:
// whatever a head says about them is handed on.
//
// The plan is made once enough groups are there, from the least memory any of them has; groups that
// come later must do with it, unless nothing runs for want of groups: then it is made anew. From
// the same options and groups it comes out the same, so that a new broker adopts what an earlier
// one has set up.
#ifndef PENSTOCK_BROKER_GROUPS_H
#define PENSTOCK_BROKER_GROUPS_H

#include "broker/allow.h"
#include "broker/fleet.h"
#include "broker/model.h"
#include "common/plan.h"
#include "common/wire.h"

#include <stdbool.h>

struct groups;

enum groups_precision { GROUPS_AUTO, GROUPS_F32, GROUPS_BF16 };

struct groups_options {
    const struct model *model; // borrowed
    void *socket;              // a ROUTER that is bound after groups_create; borrowed
    const struct allow *allow; // keys of groups; NULL: plain; borrowed
    enum groups_precision precision; // auto: what the groups prefer, f32 if any of them does
    int pp;
    int layers[PP_MAX]; // layers[0] == 0: chosen
    int slots, max_context, max_rows, chunk, kv_blocks; // 0: chosen
    void *arg;
    void (*planned)(void *arg, const struct plan *plan);
    // The pipeline serves. adopted: an earlier broker set it up; its head will say HELLO again.
    void (*up)(void *arg, const struct group *head, uint64_t pipeline, uint64_t epoch,
               bool adopted);
    void (*down)(void *arg);
    void (*head_hello)(void *arg, const struct peer *head, const struct wire_hello *h);
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

// A group of the pipeline wants to leave: send it no more jobs, and call groups_drained when none
// runs.
bool groups_draining(const struct groups *g);
void groups_drained(struct groups *g);

// True while a fresh broker may still find running attempts of an earlier one.
bool groups_adopting(const struct groups *g, int64_t now_ms);

#endif
