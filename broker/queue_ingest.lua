
-- Ingest: from a tenant's inbox to a job, or to a dead letter that says why not.

local function taken_member(seq, tenant) return seq .. ':' .. tenant end

local function is_taken(p, seq, tenant)
    return call('ZSCORE', p .. 'taken', taken_member(seq, tenant)) ~= false
end

local function drop_message(p, seq, tenant)
    if not is_taken(p, seq, tenant) then return end
    lighten(p, tenant, seq)
    call('HDEL', p .. 'raw', seq)
    call('ZREM', p .. 'taken', taken_member(seq, tenant))
end

-- Bytes that may still be taken in, within the tenant's budget and that of all (0: none).
local function room_for(p, tenant, budget, all)
    local h = call('HMGET', p .. 'bytes', tenant, '*')
    local room = BYTES_MAX
    if budget > 0 then room = math.min(room, budget - tonumber(h[1] or 0)) end
    if all > 0 then room = math.min(room, all - tonumber(h[2] or 0)) end
    return room
end

-- term, tenant, max_n, max_bytes, max_message, most of all
-- -> {left, {tenant, seq, size, bytes or nil}...}; nothing is taken over a budget in bytes
local function take(keys, args)
    local p = prefix(keys, args, 5, 6)
    local term, tenant = term_of(args), name(args[2], 'tenant', 64)
    local max_n = uint(args[3], 'max_n', 1, MANY)
    local max_bytes = uint(args[4], 'max_bytes', 1, BYTES_MAX)
    local max_message = uint(args[5], 'max_message', 1, BYTES_MAX)
    local all = uint(args[6] or '0', 'most of all', 0, EXACT)
    local known = call('HGET', p .. 'tenants', tenant)
    if not known then refuse('BADARG', 'unknown tenant') end
    fence(p, term)
    local room = room_for(p, tenant, tenant_of(known).bytes, all)
    if room <= 0 then return {call('LLEN', p .. 'in:' .. tenant)} end
    max_bytes = math.min(max_bytes, room)
    local inbox = p .. 'in:' .. tenant
    local messages, total = {}, 0
    for i = 0, max_n - 1 do
        local m = call('LINDEX', inbox, i)
        if not m or (i > 0 and total + #m > max_bytes) then break end
        messages[i + 1] = m
        total = total + #m
    end
    local n = #messages
    if n == 0 then return {0} end
    local seq = call('INCRBY', p .. 'seq', n) - n
    local reply = {0}
    for i, m in ipairs(messages) do
        local s = str(seq + i)
        call('HSET', p .. 'raw', s, m)
        call('ZADD', p .. 'taken', s, taken_member(s, tenant))
        reply[i + 1] = {tenant, s, #m, #m <= max_message and m}
    end
    weigh(p, tenant, total)
    call('LTRIM', inbox, n, -1)
    reply[1] = call('LLEN', inbox)
    return reply
end

-- term, after, max_n, max_bytes, max_message -> as take: what was taken and never admitted
local function recover(keys, args)
    local p = prefix(keys, args, 5)
    local term, after = term_of(args), uint(args[2], 'after', 0, EXACT)
    local max_n = uint(args[3], 'max_n', 1, MANY)
    local max_bytes = uint(args[4], 'max_bytes', 1, BYTES_MAX)
    local max_message = uint(args[5], 'max_message', 1, BYTES_MAX)
    fence(p, term)
    local found = call('ZRANGE', p .. 'taken', '(' .. str(after), '+inf', 'BYSCORE', 'LIMIT', 0,
                       max_n)
    local reply, total = {0}, 0
    for i, member in ipairs(found) do
        local s, tenant = split(member)
        local size = call('HSTRLEN', p .. 'raw', s)
        if i > 1 and total + size > max_bytes then break end
        total = total + size
        reply[i + 1] = {tenant, s, size, size <= max_message and call('HGET', p .. 'raw', s)}
    end
    reply[1] = call('ZCARD', p .. 'taken') - (#reply - 1)
    return reply
end

-- Makes a taken message a dead letter under `id`. It was never a job: a later message may have its
-- id.
local function dead_letter(p, tenant, seq, id, custom, code, text, result, now)
    local record = {seq = seq, custom = custom}
    if result == '' then result = make_result(id, record, 'error', code, text) end
    local member = tenant .. ':' .. id
    call('SET', p .. 'r:' .. member, result, 'PX', DEAD_TTL_MS)
    call('HSET', job_key(p, tenant, id), 'state', 'failed', 'rejected', 1, 'seq', seq, 'ended', now,
         'code', code, 'text', text)
    call('ZADD', p .. 'dead', now, member)
    count(p, 'rejected')
    event(p, tenant, id, 'failed')
    lighten(p, tenant, seq)
    call('ZREM', p .. 'taken', taken_member(seq, tenant))
end

-- `keep`: a sequence number whose bytes stay.
local function drop_dead(p, tenant, id, job, keep)
    local member = tenant .. ':' .. id
    if job and job.seq and job.seq ~= keep then call('HDEL', p .. 'raw', job.seq) end
    call('DEL', job_key(p, tenant, id), p .. 'r:' .. member, stream_key(p, tenant, id))
    call('ZREM', p .. 'dead', member)
end

-- The id of a dead letter whose own id cannot be had; ids of jobs have the same alphabet.
local function raw_id(p, tenant, seq)
    local id = 'raw-' .. seq
    while call('EXISTS', job_key(p, tenant, id)) == 1 do id = id .. '-' end
    return id
end

local function conflict(p, tenant, seq, id, custom, code, text, result, now)
    count(p, 'conflicts')
    event(p, tenant, id, 'id_conflict')
    dead_letter(p, tenant, seq, raw_id(p, tenant, seq), custom, code, text, result, now)
    return 'id_conflict'
end

local function admit_fields(args)
    local job = {
        state = 'queued', seq = str(uint(args[3], 'seq', 1, EXACT)),
        class = str(uint(args[5], 'class', 0, 3)), hash = bytes(args[6], 'body hash', 128),
        need = str(uint(args[7], 'need', 0, EXACT)),
        prompt = str(uint(args[8], 'n_prompt', 0, EXACT)),
        most = str(uint(args[9], 'max_tokens', 0, EXACT)),
        ttl = str(uint(args[12], 'ttl', 1, EXACT / 2)),
        max = str(uint(args[13], 'attempts', 1, 20)),
    }
    if job.need == '0' then job.state, job.split = 'waiting', '0' end
    local at = uint(args[10], 'at', 0, EXACT / 2)
    local deadline = uint(args[11], 'deadline', 0, EXACT / 2)
    if deadline > 0 then job.deadline = str(deadline) end
    if uint(args[14], 'stream', 0, 1) == 1 then job.stream = '1' end
    if bytes(args[15], 'custom_id', 512) ~= '' then job.custom = args[15] end
    if args[16] ~= '' then job.batch = name(args[16], 'batch', 64) end
    job.model = model_name(args[17])
    return job, at
end

-- What is said of a message whose id exists: nil if the old record gives way to it.
local function admit_known(p, tenant, id, job, old, now)
    if old.rejected then
        drop_dead(p, tenant, id, old, job.seq)
        return nil
    end
    if old.hash ~= job.hash or old.parent then -- nobody is told of a child's end
        local whose = old.parent and 'the id ' .. id .. ' belongs to a child of ' .. old.parent
            or 'another job with the id ' .. id .. ' and another body is in the queue'
        return conflict(p, tenant, job.seq, id, job.custom, 'id_conflict', whose, '', now)
    end
    count(p, 'duplicates')
    drop_message(p, job.seq, tenant)
    if not ended(old) then return 'duplicate' end
    event(p, tenant, id, old.state, old.attempt) -- who sent it again waits for news of it
    return 'duplicate_done'
end

-- A need of 0 says that the job is to be split first.
-- term, tenant, seq, id, class, body hash, need, n_prompt, max_tokens, at, deadline, ttl, attempts,
-- stream, custom_id, batch, model -> ok | duplicate | duplicate_done | id_conflict | unknown
local function admit(keys, args)
    local p = prefix(keys, args, 17)
    local term, tenant, id = term_of(args), name(args[2], 'tenant', 64), name(args[4], 'id', 64)
    local job, at = admit_fields(args)
    fence(p, term)
    local now = now_ms()
    local old = load_job(p, tenant, id)
    if not is_taken(p, job.seq, tenant) then
        return old and old.seq == job.seq and 'ok' or 'unknown'
    end
    if old and (old.seq ~= job.seq or old.rejected) then
        local word = admit_known(p, tenant, id, job, old, now)
        if word then return word end
    end
    if job.stream and not old then call('DEL', stream_key(p, tenant, id)) end -- of an earlier life
    job.admitted = str(now)
    call('HSETNX', p .. 'models', job.model, now)
    local flat = {}
    for k, v in pairs(job) do
        flat[#flat + 1] = k
        flat[#flat + 1] = v
    end
    call('HSET', job_key(p, tenant, id), unpack(flat))
    local member = tenant .. ':' .. id
    if job.deadline then call('ZADD', p .. 'exp', job.deadline, member) end
    if at > now then
        call('HSET', job_key(p, tenant, id), 'since', str(at))
        call('ZADD', p .. 'dly', at, member)
    elseif job.split then
        call('ZADD', join_key(p, job), now, member)
    else
        call('ZADD', ready_key(p, tenant, job), job.seq, id)
    end
    count(p, 'admitted')
    count_batch(p, tenant, job.batch, 'total')
    call('ZREM', p .. 'taken', taken_member(job.seq, tenant))
    return 'ok'
end

-- term, tenant, seq, id or '', custom_id, code, text, result or '' -> dead | id_conflict | unknown
local function reject(keys, args)
    local p = prefix(keys, args, 8)
    local term, tenant = term_of(args), name(args[2], 'tenant', 64)
    local seq, id = str(uint(args[3], 'seq', 1, EXACT)), args[4]
    if id ~= '' then name(id, 'id', 64) end
    local custom = bytes(args[5], 'custom_id', 512)
    local code, text = name(args[6], 'code', 64), bytes(args[7], 'text', TEXT_MAX)
    local result = bytes(args[8], 'result', BYTES_MAX)
    fence(p, term)
    local now = now_ms()
    local old = id ~= '' and load_job(p, tenant, id)
    if not is_taken(p, seq, tenant) then
        if id == '' then old = load_job(p, tenant, 'raw-' .. seq) end
        return old and old.seq == seq and old.rejected and 'dead' or 'unknown'
    end
    if old and old.seq ~= seq then
        if not old.rejected then
            return conflict(p, tenant, seq, id, custom, code, text, result, now)
        end
        drop_dead(p, tenant, id, old)
    end
    if id == '' then id = raw_id(p, tenant, seq) end
    dead_letter(p, tenant, seq, id, custom, code, text, result, now)
    return 'dead'
end

-- term, tenant, seq of the cancel's own message or 0, id
-- -> {cancelled | done | unknown} or {running, attempt, owner}
local function cancel(keys, args)
    local p = prefix(keys, args, 4)
    local term, tenant = term_of(args), name(args[2], 'tenant', 64)
    local seq, id = str(uint(args[3], 'seq', 0, EXACT)), name(args[4], 'id', 64)
    fence(p, term)
    local job, word = load_job(p, tenant, id), nil
    if not job then
        word = {'unknown'}
    elseif job.state == 'queued' or job.state == 'waiting' then
        word = {finish_cancelled(p, tenant, id, job, now_ms())}
    elseif job.state == 'running' then
        call('HSET', job_key(p, tenant, id), 'cancel', 1)
        word = {'running', job.attempt, job.owner}
    else
        word = {job.state == 'cancelled' and 'cancelled' or 'done'}
    end
    drop_message(p, seq, tenant)
    return word
end
