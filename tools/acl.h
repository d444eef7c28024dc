// Which rights in Redis each role needs, as rules of ACL SETUSER: producers of one tenant, brokers,
// viewers. Pure. common/PROTOCOL.md says what producers do; the broker's commands are read from
// its function library, so that the two can't drift apart.
#ifndef PENSTOCK_TOOLS_ACL_H
#define PENSTOCK_TOOLS_ACL_H

#include <stddef.h>

enum acl_role { ACL_PRODUCER, ACL_BROKER, ACL_VIEWER, ACL_ROLES };

enum { ACL_RULES_MAX = 4096 };

const char *acl_role_name(enum acl_role role);

// The rules behind ACL SETUSER NAME, without a password: "reset on ...". db: the database of the
// queue; only the channel that tells of pushes depends on it.
void acl_rules(enum acl_role role, const char *queue, const char *tenant, int db,
               char rules[ACL_RULES_MAX]);

#endif
