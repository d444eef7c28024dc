#!/usr/bin/env bash
# What `penstock conformance producer` talks to: wishes as JSON lines in, replies out. Needs jq.
. "$(dirname "$0")/penstock.sh"

declare -A since=()

fields() { jq -r '(.fields // {}) | to_entries[] | "\(.key)=\(.value)"' <<<"$1"; }

shown() { # RESULT-JSON ID
    jq -c --arg id "$2" '{id: $id, status, text, finish_reason, custom_id, error: .error.code}' \
        <<<"${1:-{\}}"
}

enqueue() {
    local args=()
    mapfile -t args < <(fields "$1")
    [ "$(jq 'has("id")' <<<"$1")" = false ] || args+=("id=$(jq -r .id <<<"$1")")
    penstock_enqueue "$(jq -r .op <<<"$1")" "${args[@]}" < <(jq -c .body <<<"$1") || return
    since[$penstock_id]=$penstock_since
    printf '{"id":"%s"}\n' "$penstock_id"
}

wait_for() {
    local result status
    result=$(penstock_wait "$2" "${since[$2]:-}" "$(jq .timeout <<<"$1")")
    status=$?
    if [ $status = 0 ]; then shown "$result" "$2"; fi
    return $status
}

# What one read gets is a piece.
stream() {
    local text fd pid status pieces=-1 before=-1 size=0
    text=$(mktemp)
    exec {fd}< <(penstock_stream "$2" "${since[$2]:-}" "$(jq .timeout <<<"$1")" \
        "$(jq '.offset // 0' <<<"$1")")
    pid=$!
    while ((size > before)); do
        before=$size pieces=$((pieces + 1))
        dd bs=65536 count=1 status=none <&"$fd" >>"$text"
        size=$(wc -c <"$text")
    done
    exec {fd}<&-
    wait $pid
    status=$?
    if [ $status = 0 ]; then
        jq -cn --arg id "$2" --rawfile text "$text" --argjson pieces "$pieces" \
            '{id: $id, text: $text, pieces: $pieces}'
    fi
    rm -f "$text"
    return $status
}

bulk() {
    local prefix=$2 n
    n=$(jq .n <<<"$1")
    for ((i = 0; i < n; i++)); do
        printf '%s-%d\t{"prompt":"%s-%d","max_tokens":16}\n' "$prefix" "$i" "$prefix" "$i"
    done | penstock_bulk completion "$(jq .window <<<"$1")" |
        jq -cs 'map({(.id): (if .status == "ok" then .text else .error.code end)}) |
                {results: add}'
}

while IFS= read -r wish; do
    id=$(jq -r '.id // .prefix // ""' <<<"$wish")
    case $(jq -r .do <<<"$wish") in
    enqueue) enqueue "$wish" ;;
    wait) wait_for "$wish" "$id" ;;
    result) result=$(penstock_result "$id") && shown "$result" "$id" ;;
    stream) stream "$wish" "$id" ;;
    cancel) penstock_cancel "$id" && printf '{"id":"%s"}\n' "$id" ;;
    bulk) bulk "$wish" "$id" ;;
    *) printf '{"unsupported":true}\n' ;;
    esac </dev/null
    case $? in
    0) ;;
    3) printf '{"timeout":true}\n' ;;
    *) printf '{"failure":"see standard error"}\n' ;;
    esac
done
