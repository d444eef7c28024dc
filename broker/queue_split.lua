
-- Jobs that are split: a parent waits while its children run, level by level; then it runs itself,
-- or ends with what they made. A parent is `waiting`; its `split` is the level that it has reached
-- (0: none yet), `n<level>` the number of children there. Children are jobs like others, but stand
-- in their parent's place in the line, tell nobody of their end, and are no dead letters. Their
-- results stay until the parent ends.
--
-- join:<model> has the parents that wait for the broker: to be split first, or to have the results
-- of a level taken on. m:T:ID has the children of the level reached that have not ended well.

local CHILDREN_MAX = 4096       -- of a level
local LEVELS_MAX = 8
local LATER_MS = 500            -- until children of an earlier life have ended
local SENTENCE_MAX = 479        -- bytes of an error's text that readers take

local function child_id(id, level, i) return string.format('%s-m%d-%d', id, level, i) end

local function open_key(p, tenant, id) return p .. 'm:' .. tenant .. ':' .. id end

local function each_child(id, job, fn)
    for level = 1, tonumber(job.split) do
        for i = 1, tonumber(job['n' .. level] or 0) do fn(child_id(id, level, i), level, i) end
    end
end

-- --- ends

-- A sentence that is too long ends before a character.
local function cut(text)
    if #text <= SENTENCE_MAX then return text end
    return (string.gsub(string.sub(text, 1, SENTENCE_MAX), '[\192-\255]?[\128-\191]*$', ''))
end

-- Of a child: the last good one sends the parent on, any other end is the parent's, too.
child_ended = function(p, tenant, id, job, state, now, why)
    local parent = load_job(p, tenant, job.parent)
    if not parent or parent.state ~= 'waiting' or parent.split ~= job.level then return end
    if state == 'done' then
        local key = open_key(p, tenant, job.parent)
        call('ZREM', key, job.index)
        if call('ZCARD', key) > 0 then return end
        call('ZADD', join_key(p, parent), now, tenant .. ':' .. job.parent)
    elseif state == 'expired' then
        finish_expired(p, tenant, job.parent, parent, now)
    else
        local text = state == 'failed' and why[2] .. ': ' .. why[4] or 'it was cancelled'
        finish_failed(p, tenant, job.parent, parent, 'child_failed',
                      cut('the child ' .. id .. ' failed: ' .. text), '', now)
    end
end

-- Of a parent: what still runs is cancelled (promote does it, a few at a time, and tells the
-- groups); what has ended lives as long as the parent's result, and under a dead letter for its
-- retry.
parent_ended = function(p, tenant, id, job, state, now)
    local open = {}
    for _, i in ipairs(call('ZRANGE', open_key(p, tenant, id), 0, -1)) do open[i] = true end
    call('ZREM', join_key(p, job), tenant .. ':' .. id)
    call('DEL', open_key(p, tenant, id))
    each_child(id, job, function(child, level, i)
        local key, member = job_key(p, tenant, child), tenant .. ':' .. child
        local h = call('HMGET', key, 'state', 'parent')
        if h[2] ~= id then return end
        if tostring(level) == job.split and open[str(i)] and not ended({state = h[1]}) then
            call('HSET', key, 'cancel', 1)
            if state ~= 'failed' then call('HSET', key, 'ttl', job.ttl) end
            call('ZADD', p .. 'exp', 0, member)
        elseif state ~= 'failed' then
            call('PEXPIRE', key, job.ttl)
            call('PEXPIRE', p .. 'r:' .. member, job.ttl)
        end
    end)
end

-- What a purged parent leaves.
local function drop_children(p, tenant, id, job)
    if not job.split then return end
    each_child(id, job, function(child)
        local key = job_key(p, tenant, child)
        local h = call('HMGET', key, 'state', 'parent')
        if h[2] == id and ended({state = h[1]}) then
            call('DEL', key, p .. 'r:' .. tenant .. ':' .. child)
        elseif h[2] == id then
            call('HSET', key, 'ttl', 1) -- it is being cancelled
        end
    end)
end

-- --- the broker's part

-- The parent if it waits at this level; else nil, and a word for the caller.
local function waiting(p, tenant, id, level)
    local job = load_job(p, tenant, id)
    if not job then return nil, 'unknown' end
    if job.state ~= 'waiting' or job.split ~= str(level) then return nil, 'stale', job end
    return job
end

local function parent_of(args)
    return name(args[2], 'tenant', 64), name(args[3], 'id', 64), uint(args[4], 'level', 0,
                                                                      LEVELS_MAX)
end

-- term, model, limit -> {{tenant, id, level, children}...}: parents to be taken on
local function joins(keys, args)
    local p = prefix(keys, args, 3)
    local term, model = term_of(args), model_name(args[2])
    local limit = uint(args[3], 'limit', 1, MANY)
    fence(p, term)
    local reply = {}
    local key = join_key(p, {model = model})
    local due = call('ZRANGE', key, '-inf', now_ms(), 'BYSCORE', 'LIMIT', 0, limit)
    for _, member in ipairs(due) do
        local tenant, id = split(member)
        local job = load_job(p, tenant, id)
        if job and job.state == 'waiting' then
            reply[#reply + 1] = {tenant, id, job.split, job['n' .. job.split] or '0'}
        else
            call('ZREM', key, member)
        end
    end
    return reply
end

-- term, tenant, id, level, after, max_bytes
-- -> {ok, message or '', usage of earlier levels, {index, result or nil}...} or {stale | unknown}
-- The message comes with the first results only (after 0).
local function gather(keys, args)
    local p = prefix(keys, args, 6)
    local term, tenant, id, level = term_of(args), parent_of(args)
    local after = uint(args[5], 'after', 0, CHILDREN_MAX)
    local max_bytes = uint(args[6], 'max_bytes', 1, BYTES_MAX)
    fence(p, term, true)
    local job, word = waiting(p, tenant, id, level)
    if not job then return {word} end
    local reply = {'ok', after == 0 and call('HGET', p .. 'raw', job.seq) or '', job.prior or ''}
    local total = 0
    for i = after + 1, tonumber(job['n' .. level] or 0) do
        local result = call('GET', p .. 'r:' .. tenant .. ':' .. child_id(id, level, i))
        total = total + (result and #result or 0)
        if i > after + 1 and total > max_bytes then break end
        reply[#reply + 1] = {str(i), result}
    end
    return reply
end

-- What is there under a child's id: nil, `again` (ended otherwise), `done` (and the same), `open`
-- (of a split that broke off); id_conflict: another's job; later: it ends soon.
local function child_known(p, tenant, id, child, hash)
    local old = load_job(p, tenant, child)
    if not old then return nil end
    if old.rejected then return 'again', old end
    if old.parent ~= id then return 'id_conflict' end
    if ended(old) then
        local same = old.state == 'done' and old.hash == hash
        local there = call('EXISTS', p .. 'r:' .. tenant .. ':' .. child) == 1
        return same and there and 'done' or 'again', old
    end
    return (old.cancel or old.hash ~= hash) and 'later' or 'open', old
end

-- A long list of arguments, a piece at a time.
local function in_pieces(list, fn)
    for i = 1, #list, 400 do fn(unpack(list, i, math.min(i + 399, #list))) end
end

-- The record of a child that is ready to run.
local function write_child(p, tenant, id, job, level, i, seq, args, now)
    local a, child = 5 * i, child_id(id, level, i)
    call('HSET', job_key(p, tenant, child), 'state', 'queued', 'seq', seq, 'class', job.class,
         'hash', args[a + 1], 'need', args[a + 2], 'prompt', args[a + 3], 'most', args[a + 4],
         'ttl', DEAD_TTL_MS, 'max', job.max, 'admitted', now, 'parent', id, 'level', level,
         'index', i, 'place', job.seq, 'model', job.model)
    if job.deadline then
        call('HSET', job_key(p, tenant, child), 'deadline', job.deadline)
        call('ZADD', p .. 'exp', job.deadline, tenant .. ':' .. child)
    end
end

-- What is left of a child's earlier life.
local function drop_child(p, tenant, child)
    local member = tenant .. ':' .. child
    call('DEL', job_key(p, tenant, child), p .. 'r:' .. member, p .. 'c:' .. member)
    call('ZREM', p .. 'dead', member)
end

-- Whether a child of a split that broke off needs its place in the line again.
local function is_stranded(p, tenant, child)
    local queued = call('HGET', job_key(p, tenant, child), 'state') == 'queued'
    return queued and not call('ZSCORE', p .. 'dly', tenant .. ':' .. child)
end

-- The children of a level; known: what child_known said of each. Messages come first, and the
-- places in the line last.
local function write_children(p, tenant, id, job, level, known, args, now)
    local seq = call('INCRBY', p .. 'seq', #known) - #known
    local messages, open, ready, total, new = {}, {}, {}, 0, 0
    for i, was in ipairs(known) do
        if was == 'new' or was == 'again' then
            messages[#messages + 1] = str(seq + i)
            messages[#messages + 1] = args[5 * i + 5]
            total, new = total + #args[5 * i + 5], new + 1
        end
    end
    in_pieces(messages, function(...) call('HSET', p .. 'raw', ...) end)
    for i, was in ipairs(known) do
        local child = child_id(id, level, i)
        if was == 'again' then drop_child(p, tenant, child) end
        if was == 'new' or was == 'again' then
            write_child(p, tenant, id, job, level, i, str(seq + i), args, now)
        end
        if was ~= 'done' then
            open[#open + 1], open[#open + 2] = i, i
            if was ~= 'open' or is_stranded(p, tenant, child) then
                ready[#ready + 1], ready[#ready + 2] = job.seq, child
            end
        end
    end
    in_pieces(open, function(...) call('ZADD', open_key(p, tenant, id), ...) end)
    in_pieces(ready, function(...) call('ZADD', ready_key(p, tenant, job), ...) end)
    weigh(p, tenant, total)
    if new > 0 then call('HINCRBY', p .. 'n', 'admitted', new) end
end

-- term, tenant, id, level of the children, usage of earlier levels,
-- (body hash, need, n_prompt, max_tokens, message)...
-- -> ok | id_conflict | later | stale | unknown
-- Children of an earlier try that ended well with the same request are not made again.
local function split_job(keys, args)
    local p = prefix(keys, args, 10, 5 + 5 * CHILDREN_MAX)
    local term, tenant, id, level = term_of(args), parent_of(args)
    bytes(args[5], 'usage', 64)
    local n = tuples(args, 6, 5)
    for i = 6, #args, 5 do
        bytes(args[i], 'body hash', 128)
        for k = 1, 3 do uint(args[i + k], 'number', 0, EXACT) end
        if bytes(args[i + 4], 'message', BYTES_MAX) == '' then refuse('BADARG', 'no message') end
    end
    if level < 1 then refuse('BADARG', 'children have levels from 1 on') end
    fence(p, term)
    local job, word, now = nil, nil, now_ms()
    job, word = waiting(p, tenant, id, level - 1)
    if not job then
        return waiting(p, tenant, id, level) and 'ok' or word -- said before
    end
    local known = {}
    for i = 1, n do
        local old
        word, old = child_known(p, tenant, id, child_id(id, level, i), args[1 + 5 * i])
        if word == 'id_conflict' then return word end
        if word == 'later' then
            if not old.cancel then
                call('HSET', job_key(p, tenant, child_id(id, level, i)), 'cancel', 1)
                call('ZADD', p .. 'exp', 0, tenant .. ':' .. child_id(id, level, i))
            end
            call('ZADD', join_key(p, job), now + LATER_MS, tenant .. ':' .. id)
            return word
        end
        known[i] = word or 'new'
    end
    write_children(p, tenant, id, job, level, known, args, now)
    call('HSET', job_key(p, tenant, id), 'n' .. level, n, 'prior', args[5], 'split', level)
    if call('ZCARD', open_key(p, tenant, id)) == 0 then
        call('ZADD', join_key(p, job), now, tenant .. ':' .. id)
    else
        call('ZREM', join_key(p, job), tenant .. ':' .. id)
    end
    return 'ok'
end

-- term, tenant, id, level, need, n_prompt, max_tokens, usage of all children, message
-- -> ok | stale | unknown: the parent is ready to run itself; its own message is kept for a retry
local function reduce(keys, args)
    local p = prefix(keys, args, 9)
    local term, tenant, id, level = term_of(args), parent_of(args)
    for k = 5, 7 do uint(args[k], 'number', 0, EXACT) end
    bytes(args[8], 'usage', 64)
    if bytes(args[9], 'message', BYTES_MAX) == '' then refuse('BADARG', 'no message') end
    fence(p, term)
    local job, word, other = waiting(p, tenant, id, level)
    if not job then return other and other.run and other.split == str(level) and 'ok' or word end
    local seq = str(call('INCR', p .. 'seq'))
    call('HSET', p .. 'raw', seq, args[9])
    weigh(p, tenant, #args[9])
    call('HSET', job_key(p, tenant, id), 'run', seq, 'need', args[5], 'prompt', args[6], 'most',
         args[7], 'prior', args[8], 'since', now_ms(), 'state', 'queued')
    call('ZADD', ready_key(p, tenant, job), job.seq, id)
    call('ZREM', join_key(p, job), tenant .. ':' .. id)
    return 'ok'
end

-- term, tenant, id, level, done | failed, code, text, result or '', text of the result
-- -> ok | stale | unknown. The parent ends without running itself; if it streams, the text of the
-- result is published as one chunk.
local function joined(keys, args)
    local p = prefix(keys, args, 9)
    local term, tenant, id, level = term_of(args), parent_of(args)
    local state, result = args[5], bytes(args[8], 'result', BYTES_MAX)
    if state ~= 'done' and state ~= 'failed' then refuse('BADARG', 'neither done nor failed') end
    if state == 'failed' then name(args[6], 'code', 64) end
    bytes(args[7], 'text', TEXT_MAX)
    bytes(args[9], 'text', BYTES_MAX)
    if state == 'done' and result == '' then refuse('BADARG', 'the result is empty') end
    fence(p, term)
    local job, word = waiting(p, tenant, id, level)
    if not job then return word end
    if state == 'done' then
        publish(p, tenant, id, job, 0, args[9], true)
        finish(p, tenant, id, job, state, result, now_ms())
    else
        finish_failed(p, tenant, id, job, args[6], args[7], result, now_ms())
    end
    return 'ok'
end
