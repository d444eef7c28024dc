#include "broker/standby.h"


void standby_init(struct standby *s, void *socket, const struct allow *allow)
{
    *s = (struct standby){0};
    peers_init(&s->peers, socket, 0);
    s->peers.allow = allow;
}

void standby_deinit(struct standby *s) { peers_deinit(&s->peers); }

void standby_follow(struct standby *s, uint64_t term) { s->peers.term = term; }

static void remember(struct standby *s, const struct peer *from)
{
    for (int i = 0; i < s->n_known; i++) {
        if (fleet_same_peer(&s->known[i], from)) return;
    }
    if (s->n_known < FLEET_GROUPS_MAX) {
        s->known[s->n_known++] = *from;
        return;
    }
    s->known[s->next] = *from; // connections that ended are not told of: the oldest goes
    s->next = (s->next + 1) % FLEET_GROUPS_MAX;
}

static void on_message(void *arg, const struct peer *from, const struct wire_message *m)
{
    struct standby *s = arg;
    struct wire_message answer = {.command = WIRE_STANDBY};
    if (m->command == WIRE_ERROR || m->command == WIRE_BYE) return;
    remember(s, from);
    peers_send(&s->peers, from, &answer);
}

void standby_receive(struct standby *s) { peers_turn(&s->peers, on_message, s); }

void standby_ends(struct standby *s, uint64_t term)
{
    struct wire_message m = wire_error_message("unknown_peer", "say HELLO");
    s->peers.term = term;
    for (int i = 0; i < s->n_known; i++) peers_send(&s->peers, &s->known[i], &m);
    s->n_known = 0;
}
