# A client of Penstock's queue for bash: redis-cli, awk, od. Source it, set PENSTOCK_REDIS (and
# PENSTOCK_QUEUE, PENSTOCK_TENANT), then
#
#     penstock_enqueue completion <<<'{"prompt": "Hello", "max_tokens": 16}'
#     penstock_wait "$penstock_id" "$penstock_since" 300        # the result as JSON
#
# Bodies are JSON text, which the schema allows, so only a flat map of msgpack is to be written.
# What is told in variables is lost in a pipe, whose ends are processes of their own.
# Status 0: done; 1: Redis refused, or was away or full for longer than PENSTOCK_PATIENCE (60 s);
# 3: not in time; 4: what was streamed is not the result's text.
# shellcheck shell=bash

PENSTOCK_BLOCK_MS=5000 # of one XREAD

_penstock_key() {
    printf 'ps:{%s}:%s:%s' "${PENSTOCK_QUEUE:-default}" "$1" "${PENSTOCK_TENANT:-default}"
}

_penstock_redis() {
    redis-cli --no-auth-warning -e -u "${PENSTOCK_REDIS:-redis://127.0.0.1:6379}" "$@"
}

# Runs a command until it succeeds, as long as Redis is away or full. Its output in $penstock_reply.
_penstock_again() {
    local until=$((SECONDS + ${PENSTOCK_PATIENCE:-60})) delay=0.05
    # redis-cli goes on as nobody after a login that failed.
    until penstock_reply=$("$@" 2>&1) &&
        [[ $penstock_reply != OOM* && $penstock_reply != "AUTH failed"* ]]; do
        if [[ $penstock_reply =~ ^(NOPERM|NOAUTH|WRONG|ERR|AUTH) ]] || ((SECONDS >= until)); then
            printf 'penstock: Redis: %s\n' "${penstock_reply:0:300}" >&2
            return 1
        fi
        sleep "$delay"
        delay=1
    done
}

penstock_new_id() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# --- msgpack

# A length of four bytes.
_penstock_u32() {
    # shellcheck disable=SC2059
    printf "$(printf '\\%03o' $(($1 >> 24 & 255)) $(($1 >> 16 & 255)) \
        $(($1 >> 8 & 255)) $(($1 & 255)))"
}

_penstock_str() {
    printf '\333'
    _penstock_u32 "$(printf %s "$1" | wc -c)"
    printf %s "$1"
}

_penstock_int() { # 64 bits
    printf '\323'
    _penstock_u32 $(($1 >> 32))
    _penstock_u32 $(($1 & 4294967295))
}

# The message: OP ID BODY-FILE [FIELD=VALUE...]; integers and true are such, all else is text.
_penstock_message() {
    local op=$1 id=$2 body=$3 field value
    shift 3
    printf '\337'
    _penstock_u32 $((3 + $# + (${#body} > 0)))
    _penstock_str v && _penstock_int 1
    _penstock_str id && _penstock_str "$id"
    _penstock_str op && _penstock_str "$op"
    for field; do
        value=${field#*=} field=${field%%=*}
        _penstock_str "$field"
        case $field in
        class | at | deadline | ttl | attempts) _penstock_int "$value" ;;
        stream) if [ "$value" = true ]; then printf '\303'; else printf '\302'; fi ;;
        *) _penstock_str "$value" ;;
        esac
    done
    if [ -n "$body" ]; then
        _penstock_str body
        printf '\333'
        _penstock_u32 "$(wc -c <"$body")"
        cat "$body"
    fi
}

# One msgpack value on stdin as JSON on stdout.
penstock_json() {
    od -An -v -tu1 | LC_ALL=C awk '
        { for (i = 1; i <= NF; i++) b[n++] = $i }
        END { for (i = 0; i < 256; i++) chr[i] = sprintf("%c", i)
              if (n > 0) { value(); print "" } }
        function u(size,  x) { for (x = 0; size > 0; size--) x = x * 256 + b[at++]; return x }
        function s(size,  x) {
            x = u(size)
            return x >= 2 ^ (8 * size - 1) ? x - 2 ^ (8 * size) : x
        }
        function text(size,  c) {
            printf "\""
            for (; size > 0; size--) {
                c = b[at++]
                if (c == 34 || c == 92) printf "\\%s", chr[c]
                else if (c < 32) printf "\\u%04x", c
                else printf "%s", chr[c]
            }
            printf "\""
        }
        function bytes(size,  comma) { # no JSON has bin: a list of numbers
            printf "["
            for (; size > 0; size--) { printf "%s%d", comma, b[at++]; comma = "," }
            printf "]"
        }
        function list(size,  comma) {
            printf "["
            for (; size > 0; size--) { printf "%s", comma; value(); comma = "," }
            printf "]"
        }
        function map(size,  comma) {
            printf "{"
            for (; size > 0; size--) {
                printf "%s", comma
                value()
                printf ":"
                value()
                comma = ","
            }
            printf "}"
        }
        function real(size,  bits, bias, x, sign, e, f) {
            bits = size == 4 ? 23 : 52
            bias = size == 4 ? 127 : 1023
            x = b[at++]
            sign = x >= 128 ? -1 : 1
            e = (x % 128) * (size == 4 ? 2 : 16) + int(b[at] / (size == 4 ? 128 : 16))
            f = b[at++] % (size == 4 ? 128 : 16)
            for (size -= 2; size > 0; size--) f = f * 256 + b[at++]
            if (e == 2 * bias + 1) { printf "null"; return } # JSON has no infinity
            printf "%.17g", sign * (e > 0 ? (1 + f / 2 ^ bits) * 2 ^ (e - bias) \
                                          : f / 2 ^ (bits + bias - 1))
        }
        function value(  c) {
            c = b[at++]
            if (c < 128) printf "%d", c
            else if (c < 144) map(c - 128)
            else if (c < 160) list(c - 144)
            else if (c < 192) text(c - 160)
            else if (c == 192) printf "null"
            else if (c == 194) printf "false"
            else if (c == 195) printf "true"
            else if (c >= 196 && c <= 198) bytes(u(2 ^ (c - 196)))
            else if (c == 202) real(4)
            else if (c == 203) real(8)
            else if (c >= 204 && c <= 207) printf "%.0f", u(2 ^ (c - 204))
            else if (c >= 208 && c <= 211) printf "%.0f", s(2 ^ (c - 208))
            else if (c >= 217 && c <= 219) text(u(2 ^ (c - 217)))
            else if (c == 220 || c == 221) list(u(2 ^ (c - 219)))
            else if (c == 222 || c == 223) map(u(2 ^ (c - 221)))
            else if (c >= 224) printf "%d", c - 256
        }'
}

# --- jobs

# Id of the last event.
penstock_last_event() {
    _penstock_again _penstock_redis --raw XREVRANGE "$(_penstock_key ev)" + - COUNT 1 || return 1
    penstock_last=${penstock_reply%%$'\n'*}
    [ -n "$penstock_last" ] || penstock_last=0-0
}

_penstock_push() {
    local file key
    key=$(_penstock_key in)
    file=$(mktemp) || return 1
    _penstock_message "$@" >"$file"
    # Whether a push that was cut off arrived is unknown: the same bytes again, which run once.
    _penstock_again _penstock_push_file "$key" "$file"
    local status=$?
    rm -f "$file"
    return $status
}

_penstock_push_file() { _penstock_redis -x RPUSH "$1" <"$2"; }

# shellcheck disable=SC2034 # of the caller
# penstock_enqueue OP [id=ID] [FIELD=VALUE...] <BODY: its id in $penstock_id, and in
# $penstock_since the last event before it.
penstock_enqueue() {
    local op=$1 body fields=() field status
    penstock_id=
    shift
    for field; do
        case $field in id=*) penstock_id=${field#id=} ;; *) fields+=("$field") ;; esac
    done
    [ -n "$penstock_id" ] || penstock_id=$(penstock_new_id)
    body=$(mktemp) || return 1
    cat >"$body"
    penstock_last_event && penstock_since=$penstock_last &&
        _penstock_push "$op" "$penstock_id" "$body" "${fields[@]}"
    status=$?
    rm -f "$body"
    return $status
}

# penstock_cancel ID
penstock_cancel() { _penstock_push cancel "$1" ""; }

_penstock_get() { _penstock_redis --raw GET "$(_penstock_key r):$1" | penstock_json; }

# penstock_result ID: as JSON; nothing if there is none (yet, or no more).
penstock_result() {
    # A first byte that no map begins with is the line's end that redis-cli gives for "none".
    _penstock_again _penstock_get "$1" || return 1
    if [[ $penstock_reply == '{'* ]]; then printf '%s\n' "$penstock_reply"; fi
}

_penstock_error() { # ID CODE MESSAGE
    printf '{"id":"%s","status":"error","error":' "$1"
    printf '{"code":"%s","message":"%s","retryable":false}}\n' "$2" "$3"
}

# The result that belongs to an event: ID EVENT
_penstock_ended() {
    if [ "$2" = id_conflict ]; then
        _penstock_error "$1" id_conflict "the id belongs to another job"
        return
    fi
    penstock_result "$1" || return 1
    [[ $penstock_reply == '{'* ]] ||
        _penstock_error "$1" result_gone "the job has ended; its result has expired"
}

# penstock_events SINCE [BLOCK-MS]: lines "ID EVENT" of what ended in $penstock_ends, the last
# entry's id in $penstock_last; $penstock_gap is 1 if the log has dropped entries unseen.
penstock_events() {
    local log oldest
    log=$(_penstock_key ev)
    _penstock_again _penstock_redis --raw XREAD COUNT 1000 BLOCK "${2:-$PENSTOCK_BLOCK_MS}" \
        STREAMS "$log" "$1" || return 1
    penstock_last=$1 penstock_gap=0 penstock_ends=
    [ -n "$penstock_reply" ] || return 0
    # The key's name, then for each entry: its id, and names and values of its fields.
    penstock_ends=$(printf '%s\n' "$penstock_reply" | awk '
        NR == 1 { next }
        !want { last = $0; want = 6; split("", f); next }
        { want--; if (want % 2) name = $0; else f[name] = $0 }
        want == 0 && f["event"] ~ /^(done|failed|cancelled|expired|id_conflict)$/ {
            print f["id"], f["event"] }
        END { print last }')
    penstock_last=${penstock_ends##*$'\n'}
    penstock_ends=${penstock_ends%"$penstock_last"}
    _penstock_again _penstock_redis --raw XRANGE "$log" - + COUNT 1 || return 1
    oldest=${penstock_reply%%$'\n'*}
    if ((${oldest%-*} > ${1%-*} || (${oldest%-*} == ${1%-*} && ${oldest#*-} > ${1#*-}))); then
        penstock_gap=1
    fi
}

# penstock_wait ID [SINCE [SECONDS]]: the result as JSON. SINCE: $penstock_since of its enqueue.
penstock_wait() {
    local since=${2:-} until=$((SECONDS + ${3:-2000000000})) result other event
    [ -n "$1" ] || return 1
    if [ -z "$since" ]; then
        penstock_last_event && since=$penstock_last && result=$(penstock_result "$1") || return 1
        [ -z "$result" ] || { printf '%s\n' "$result"; return 0; }
    fi
    while ((SECONDS < until)); do
        penstock_events "$since" "$((until - SECONDS < 5 ? (until - SECONDS) * 1000 : 5000))" ||
            return 1
        since=$penstock_last
        while read -r other event; do
            if [ "$other" = "$1" ]; then
                _penstock_ended "$1" "$event"
                return
            fi
        done <<<"$penstock_ends"
        if [ "$penstock_gap" = 1 ]; then
            result=$(penstock_result "$1") || return 1
            [ -z "$result" ] || { printf '%s\n' "$result"; return 0; }
        fi
    done
    printf 'penstock: %s has not ended in time\n' "$1" >&2
    return 3
}

# penstock_bulk OP WINDOW: lines "ID<TAB>BODY" on stdin, results as JSON lines on stdout as they
# come, in no order. At most WINDOW jobs are in the queue at once.
penstock_bulk() {
    local op=$1 window=$2 since more=1 id body event
    local -A open=()
    penstock_last_event && since=$penstock_last || return 1
    while [ "$more" = 1 ] || [ ${#open[@]} -gt 0 ]; do
        while [ "$more" = 1 ] && [ ${#open[@]} -lt "$window" ]; do
            IFS=$'\t' read -r id body <&0 || { more=0; break; }
            penstock_enqueue "$op" id="$id" <<<"$body" || return 1
            open[$id]=1
        done
        [ ${#open[@]} -gt 0 ] || break
        penstock_events "$since" </dev/null || return 1
        since=$penstock_last
        while read -r id event; do
            if [ -z "$id" ] || [ -z "${open[$id]:-}" ]; then continue; fi
            unset "open[$id]"
            _penstock_ended "$id" "$event" </dev/null || return 1
        done <<<"$penstock_ends"
        [ "$penstock_gap" = 1 ] || continue
        for id in "${!open[@]}"; do
            penstock_result "$id" </dev/null || return 1
            [[ $penstock_reply != '{'* ]] || unset "open[$id]"
        done
    done
}

_penstock_chunk() { _penstock_redis --raw XRANGE "$1" "($2" + COUNT 1 >"$3"; }

# Prints what is new in the chunk of a file, and keeps it in $all; $at and $have move on. 1: there
# is no chunk.
_penstock_place() {
    local lines offset size known from
    mapfile -t -n 6 lines <"$1"
    at=${lines[0]:-}
    [ -n "$at" ] && [ "${lines[5]:-}" = bytes ] || return 1
    offset=${lines[4]}
    size=$(($(wc -c <"$1") - $(head -n 6 "$1" | wc -c) - 1)) # redis-cli ends it with a newline
    known=$((have - offset))
    if ((known >= 0 && known < size)); then
        tail -n +7 "$1" | head -c "$size" | tail -c +$((known + 1)) >>"$all"
        from=$((have > skip ? have : skip))
        have=$((offset + size))
        tail -c +$((from + 1)) "$all"
    fi
}

# Prints chunks until the job's event; its result is then in $penstock_reply.
_penstock_chunks() { # ID SINCE UNTIL
    local since=$2 last=0-0 at ended='' key
    key=$(_penstock_key t):$1
    while ((SECONDS < $3)); do
        # Chunks are read after the events, so that none before the end is missed.
        penstock_events "$since" 200 || return 1
        since=$penstock_last
        if [[ $'\n'$penstock_ends == *$'\n'"$1 "* ]]; then
            ended=${penstock_ends##*"$1 "}
            ended=${ended%%$'\n'*}
        fi
        local gap=$penstock_gap
        while _penstock_again _penstock_chunk "$key" "$last" "$chunk" &&
            _penstock_place "$chunk"; do
            last=$at
        done
        if [ -n "$ended" ]; then
            penstock_reply=$(_penstock_ended "$1" "$ended")
            return
        fi
        if [ "$gap" = 1 ]; then
            penstock_result "$1" >/dev/null || return 1
            if [[ $penstock_reply == '{'* ]]; then return 0; fi
        fi
    done
    printf 'penstock: %s has not ended in time\n' "$1" >&2
    return 3
}

# Prints what is missing at the end of the stream. A job that was not done may have streamed more
# than its result has.
_penstock_rest() { # RESULT
    local size status
    status=$(jq -r .status <<<"$1")
    jq -j '.text // ""' <<<"$1" >"$chunk"
    size=$(wc -c <"$chunk")
    if ((size < have)) && [ "$status" != ok ]; then return 0; fi
    if ((size < have)) || ! cmp -s -n "$have" "$chunk" "$all"; then
        printf 'penstock: the streamed text is not that of the result\n' >&2
        return 4
    fi
    tail -c +$(((have > skip ? have : skip) + 1)) "$chunk"
}

# penstock_stream ID [SINCE [SECONDS [OFFSET]]]: the text as it comes, for jobs with stream=true,
# and what is missing at the end from the result (which penstock_result gives whole); behind OFFSET
# bytes only. Without SINCE the result is looked for first. Needs jq. 4: the text was not that of
# the result.
penstock_stream() {
    local since=${2:-} skip=${4:-0} have=0 chunk all status=0
    chunk=$(mktemp) && all=$(mktemp) || return 1
    penstock_reply=
    if [ -z "$since" ]; then
        penstock_last_event && since=$penstock_last && penstock_result "$1" >/dev/null || status=1
    fi
    if [ $status = 0 ] && [[ $penstock_reply != '{'* ]]; then
        _penstock_chunks "$1" "$since" $((SECONDS + ${3:-2000000000}))
        status=$?
    fi
    if [ $status = 0 ]; then
        _penstock_rest "$penstock_reply"
        status=$?
    fi
    rm -f "$chunk" "$all"
    return $status
}
