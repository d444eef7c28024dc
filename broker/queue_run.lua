
-- Dispatch and attempts: who runs a job, and how that ends.

-- term, class, tenant, model, after, limit
-- -> {{id, seq, need, n_prompt, max_tokens, deadline, starts, poison, ms that it has waited}...}
local function window(keys, args)
    local p = prefix(keys, args, 6)
    local term, class = term_of(args), str(uint(args[2], 'class', 0, 3))
    local tenant, model = name(args[3], 'tenant', 64), model_name(args[4])
    local after, limit = uint(args[5], 'after', 0, EXACT), uint(args[6], 'limit', 1, MANY)
    fence(p, term, true)
    local ids = call('ZRANGE', ready_key(p, tenant, {class = class, model = model}),
                     '(' .. str(after), '+inf', 'BYSCORE', 'LIMIT', 0, limit)
    local now, reply = now_ms(), {}
    for i, id in ipairs(ids) do
        local h = call('HMGET', job_key(p, tenant, id), 'seq', 'need', 'prompt', 'most', 'deadline',
                       'starts', 'poison', 'since', 'admitted')
        reply[i] = {id}
        for j = 1, 7 do reply[i][j + 1] = h[j] or '0' end
        reply[i][9] = str(math.max(0, now - tonumber(h[8] or h[9] or now)))
    end
    return reply
end

local function claimed(p, tenant, id, job)
    return {'ok', tenant, id, job.attempt, job.seq, call('HGET', p .. 'raw', message_at(job)),
            call('GET', p .. 'c:' .. tenant .. ':' .. id) or '', job.starts, job.fails or '0',
            job.lost or '0', job.class, job.need, job.prompt, job.most, job.admitted,
            job.deadline or '0', job.ttl, job.poison or '0', job.stream or '0', job.custom or '',
            job.batch or '', job.prior or ''}
end

-- An entry of the ready set whose job has ended or gone, left by a move that broke.
local function drop_ready(p, tenant, id)
    each_ready(p, tenant, function(key) call('ZREM', key, id) end)
end

-- Whether a job can be claimed now, the bytes it takes, whether this claim has it already.
local function claimable(p, tenant, id, job, claim, term, now)
    if not job or ended(job) then
        drop_ready(p, tenant, id)
        return false
    end
    local again = job.state == 'running' and job.claim == claim and job.term == term
    if not again then
        if job.state ~= 'queued' or ends_now(p, tenant, id, job, now) then return false end
        if not call('ZSCORE', ready_key(p, tenant, job), id) then return false end
    end
    local size = call('HSTRLEN', p .. 'raw', message_at(job))
    if size == 0 then
        finish_failed(p, tenant, id, job, 'bytes_lost', 'the bytes of the job are gone', '', now)
        return false
    end
    return true, size + call('STRLEN', p .. 'c:' .. tenant .. ':' .. id), again
end

-- term, lease, max_bytes, claim id, (owner, tenant, id)...
-- -> {{gone | later, tenant, id} or {ok, tenant, id, attempt, ...}...}
-- The same claim id again, after a reply that was lost, reads the same attempts back.
local function claim(keys, args)
    local p = prefix(keys, args, 7, 4 + 3 * MANY)
    local term, lease = str(term_of(args)), uint(args[2], 'lease', 1, EXACT / 2)
    local max_bytes = uint(args[3], 'max_bytes', 1, BYTES_MAX)
    local claim_id = str(uint(args[4], 'claim', 1, EXACT))
    local n = tuples(args, 5, 3)
    for i = 5, #args, 3 do
        bytes(args[i], 'owner', 256)
        name(args[i + 1], 'tenant', 64)
        name(args[i + 2], 'id', 64)
    end
    fence(p, tonumber(term))
    local now, total, reply = now_ms(), 0, {}
    for i = 1, n do
        local owner, tenant, id = args[2 + 3 * i], args[3 + 3 * i], args[4 + 3 * i]
        local job = load_job(p, tenant, id)
        local yes, size, again = claimable(p, tenant, id, job, claim_id, term, now)
        if not yes then
            reply[i] = {'gone', tenant, id}
        elseif not again and (is_paused(p, tenant) or total > 0 and total + size > max_bytes) then
            reply[i] = {'later', tenant, id}
        else
            total = total + size
            call('ZADD', p .. 'ls', now + lease, tenant .. ':' .. id)
            if not again then
                job.attempt = str(call('INCR', p .. 'attempt'))
                job.starts = str(tonumber(job.starts or 0) + 1)
                call('HSET', job_key(p, tenant, id), 'state', 'running', 'attempt', job.attempt,
                     'starts', job.starts, 'owner', owner, 'term', term, 'claim', claim_id,
                     'started', now)
            end
            call('ZREM', ready_key(p, tenant, job), id)
            reply[i] = claimed(p, tenant, id, job)
        end
    end
    return reply
end

-- --- attempts

-- term, lease, (tenant, id, attempt)...
-- -> {{ok | cancel | expired | stale, tenant, id, attempt, need}...}; cancel, expired: its group
-- should be told to end it.
-- `need` lets a new broker learn what the attempts that it finds running hold.
local function renew(keys, args)
    local p = prefix(keys, args, 5, 2 + 3 * MANY)
    local term, lease = term_of(args), uint(args[2], 'lease', 1, EXACT / 2)
    local n = tuples(args, 3, 3)
    for i = 3, #args, 3 do attempt_of(args, i) end
    fence(p, term)
    local now, reply = now_ms(), {}
    for i = 1, n do
        local tenant, id, attempt = attempt_of(args, 3 * i)
        local h = call('HMGET', job_key(p, tenant, id), 'state', 'attempt', 'cancel',
                       'need', 'deadline')
        local word = 'stale'
        if h[1] == 'running' and h[2] == attempt then
            call('ZADD', p .. 'ls', now + lease, tenant .. ':' .. id)
            -- Also if promote's word on the deadline was lost.
            word = h[3] and 'cancel' or late({deadline = h[5]}, now) and 'expired' or 'ok'
        end
        reply[i] = {word, tenant, id, attempt, h[4] or '0'}
    end
    return reply
end

-- Bytes at an offset of the checkpoint. -> {ok | gap, bytes there}
local function save(p, tenant, id, offset, more)
    local key = p .. 'c:' .. tenant .. ':' .. id
    local there = call('STRLEN', key)
    if offset > there then return {'gap', there} end
    if offset + #more > there then
        there = call('APPEND', key, string.sub(more, there - offset + 1))
    end
    return {'ok', there}
end

-- term, tenant, id, attempt, offset, bytes -> {ok | gap, bytes there} or {stale | unknown, 0}
local function checkpoint(keys, args)
    local p = prefix(keys, args, 6)
    local term, tenant, id, attempt = term_of(args), attempt_of(args, 2)
    local offset = uint(args[5], 'offset', 0, BYTES_MAX)
    local more = bytes(args[6], 'checkpoint', BYTES_MAX - offset)
    fence(p, term)
    local job, word = running(p, tenant, id, attempt)
    if not job then return {word, 0} end
    return save(p, tenant, id, offset, more)
end

-- term, tenant, id, attempt, offset, bytes, offset of the text, text
-- -> {ok | gap, bytes there, bytes of text that are published} or {stale | unknown, 0, 0}
-- A checkpoint, and the text of its tokens. Text whose tokens are not saved is not published: an
-- attempt that resumes might say something else.
local function stream(keys, args)
    local p = prefix(keys, args, 8)
    local term, tenant, id, attempt = term_of(args), attempt_of(args, 2)
    local offset = uint(args[5], 'offset', 0, BYTES_MAX)
    local more = bytes(args[6], 'checkpoint', BYTES_MAX - offset)
    local at = uint(args[7], 'offset of the text', 0, BYTES_MAX)
    local text = bytes(args[8], 'text', BYTES_MAX - at)
    fence(p, term)
    local job, word = running(p, tenant, id, attempt)
    if not job then return {word, 0, 0} end
    local reply = save(p, tenant, id, offset, more)
    local saved = reply[1] == 'ok'
    reply[3] = saved and publish(p, tenant, id, job, at, text) or tonumber(job.shown or 0)
    return reply
end

-- term, tenant, id, attempt, done | cancelled | expired, result, offset of the text, text
-- -> ok | stale | unknown. Of the result's text what lies beyond the offset, to be published before
-- its event; the last two may be left out.
local function done(keys, args)
    local p = prefix(keys, args, 6, 8)
    local term, tenant, id, attempt = term_of(args), attempt_of(args, 2)
    local state, result = args[5], bytes(args[6], 'result', BYTES_MAX)
    local at = uint(args[7] or '0', 'offset of the text', 0, BYTES_MAX)
    local text = bytes(args[8] or '', 'text', BYTES_MAX - at)
    if state ~= 'done' and state ~= 'cancelled' and state ~= 'expired' then
        refuse('BADARG', 'the end is not done, cancelled or expired')
    end
    if result == '' then refuse('BADARG', 'the result is empty') end
    fence(p, term)
    local job, word, old = running(p, tenant, id, attempt)
    if not job then return old and old.by == attempt and 'ok' or word end
    publish(p, tenant, id, job, at, text, true)
    finish(p, tenant, id, job, state, result, now_ms(), {'by', attempt})
    return 'ok'
end

-- term, tenant, id, attempt, code, text, retryable, base_ms, most_ms, random (0 to 999999),
-- result or ''
-- -> {retry, delay} or {dead | cancelled | expired | stale | unknown, 0}
local function fail(keys, args)
    local p = prefix(keys, args, 11)
    local term, tenant, id, attempt = term_of(args), attempt_of(args, 2)
    local code, text = name(args[5], 'code', 64), bytes(args[6], 'text', TEXT_MAX)
    local retryable = uint(args[7], 'retryable', 0, 1) == 1
    local base, most = uint(args[8], 'base', 0, EXACT / 2), uint(args[9], 'most', 0, EXACT / 2)
    local random, result = uint(args[10], 'random', 0, 999999), bytes(args[11], 'result', BYTES_MAX)
    fence(p, term)
    local job, word = running(p, tenant, id, attempt)
    if not job then return {word, 0} end
    local now = now_ms()
    word = ends_now(p, tenant, id, job, now)
    if word then return {word, 0} end
    local fails = call('HINCRBY', job_key(p, tenant, id), 'fails', 1)
    if not retryable or fails >= tonumber(job.max) then
        return {finish_failed(p, tenant, id, job, code, text, result, now), 0}
    end
    local delay = math.floor(math.min(base * 2 ^ (fails - 1), most) * random / 999999)
    call('ZADD', p .. 'dly', now + delay, tenant .. ':' .. id)
    call('HSET', job_key(p, tenant, id), 'state', 'queued', 'code', code, 'text', text)
    count(p, 'retried')
    call('ZREM', p .. 'ls', tenant .. ':' .. id)
    return {'retry', delay}
end

-- term, tenant, id, attempt, lost (0, 1) -> ready | dead | cancelled | expired | stale | unknown
local function nack(keys, args)
    local p = prefix(keys, args, 5)
    local term, tenant, id, attempt = term_of(args), attempt_of(args, 2)
    local lost = uint(args[5], 'lost', 0, 1) == 1
    fence(p, term)
    local job, word = running(p, tenant, id, attempt)
    if not job then return word end
    return requeue(p, tenant, id, job, lost, now_ms())
end
