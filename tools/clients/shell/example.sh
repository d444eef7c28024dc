#!/usr/bin/env bash
# One job and its end, then several with a bounded window. Queue by environment: PENSTOCK_REDIS,
# PENSTOCK_QUEUE, PENSTOCK_TENANT.
. "$(dirname "$0")/penstock.sh"

chat() {
    jq -cn --arg text "$1" '{messages: [{role: "user", content: $text}], max_tokens: 96,
                             temperature: 0}'
}

first=$(chat "Extract JSON: reviews - WARN - sent 57862 mails, 2ms")
penstock_enqueue chat custom_id=first <<<"$first" || exit 1
penstock_wait "$penstock_id" "$penstock_since" 300 | jq -r .text

for i in $(seq 20); do
    printf '%s\t%s\n' "$(penstock_new_id)" "$(chat "Extract JSON: WARN - billing - took ${i}ms")"
done | penstock_bulk chat 8 | jq -r '"\(.id) \(.text)"'
