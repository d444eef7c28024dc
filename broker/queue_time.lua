
-- What time does to jobs, the queue as a whole, and the registration of all functions.

-- term, limit -> {{word, tenant, id, attempt, owner}...}
local function reap(keys, args)
    local p = prefix(keys, args, 2)
    local term, limit = term_of(args), uint(args[2], 'limit', 1, MANY)
    fence(p, term)
    local now, reply = now_ms(), {}
    local due = call('ZRANGE', p .. 'ls', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
    for _, member in ipairs(due) do
        local tenant, id = split(member)
        local job = load_job(p, tenant, id)
        if job and job.state == 'running' then
            local word = requeue(p, tenant, id, job, true, now)
            reply[#reply + 1] = {word, tenant, id, job.attempt, job.owner}
        else
            call('ZREM', p .. 'ls', member)
        end
    end
    return reply
end

local function expire_due(p, now, limit, reply)
    local due = call('ZRANGE', p .. 'exp', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
    for _, member in ipairs(due) do
        local tenant, id = split(member)
        local job = load_job(p, tenant, id)
        if job and (job.state == 'queued' or job.state == 'waiting') then
            local word = job.cancel and finish_cancelled(p, tenant, id, job, now)
                or finish_expired(p, tenant, id, job, now)
            reply[#reply + 1] = {word, tenant, id, job.attempt or '0', ''}
        elseif job and job.state == 'running' then
            reply[#reply + 1] = {job.cancel and 'running' or 'cancel', tenant, id, job.attempt,
                                 job.owner}
        end
        call('ZREM', p .. 'exp', member)
    end
end

local function ready_due(p, now, limit, reply)
    local due = call('ZRANGE', p .. 'dly', '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
    for _, member in ipairs(due) do
        local tenant, id = split(member)
        local job = load_job(p, tenant, id)
        if job and job.state == 'queued' then
            call('ZADD', ready_key(p, tenant, job), place(job), id)
            reply[#reply + 1] = {'ready', tenant, id, job.attempt or '0', ''}
        elseif job and job.state == 'waiting' then
            call('ZADD', join_key(p, job), now, member)
        end
        call('ZREM', p .. 'dly', member)
    end
end

-- term, limit -> {{ready | expired | cancelled | cancel | running, tenant, id, attempt, owner}...}
-- cancel: the job runs, and its group should be told that the deadline has passed; running: that it
-- was cancelled (a child, with its parent).
local function promote(keys, args)
    local p = prefix(keys, args, 2)
    local term, limit = term_of(args), uint(args[2], 'limit', 1, MANY)
    fence(p, term)
    local now, reply = now_ms(), {}
    expire_due(p, now, limit, reply)
    ready_due(p, now, limit, reply)
    local old = call('ZRANGE', p .. 'dead', '-inf', now - DEAD_TTL_MS, 'BYSCORE', 'LIMIT', 0, limit)
    for _, member in ipairs(old) do
        local tenant, id = split(member)
        drop_dead(p, tenant, id, load_job(p, tenant, id))
    end
    return reply
end

-- --- the queue as a whole

-- How long the first of a ready set has been in the queue.
local function waited(p, tenant, key, now)
    local first = call('ZRANGE', key, 0, 0)[1]
    local since = first and call('HGET', job_key(p, tenant, first), 'admitted')
    return since and math.max(0, now - tonumber(since)) or 0
end

-- (no arguments) -> {{model, ready, oldest_ms}...}: all models that jobs ever came for
local function models(keys, args)
    local p = prefix(keys, args, 0)
    local now, reply, of = now_ms(), {}, {}
    for _, model in ipairs(call('HKEYS', p .. 'models')) do
        of[model] = {model, 0, 0}
        reply[#reply + 1] = of[model]
    end
    for _, tenant in ipairs(call('HKEYS', p .. 'tenants')) do
        each_ready(p, tenant, function(key, model)
            of[model][2] = of[model][2] + call('ZCARD', key)
            of[model][3] = math.max(of[model][3], waited(p, tenant, key, now))
        end)
    end
    return reply
end

-- (no arguments) -> {name, value...}
local function stats(keys, args)
    local p = prefix(keys, args, 0)
    local now, inbox, ready, oldest = now_ms(), 0, 0, 0
    for _, tenant in ipairs(call('HKEYS', p .. 'tenants')) do
        inbox = inbox + call('LLEN', p .. 'in:' .. tenant)
        each_ready(p, tenant, function(key)
            ready = ready + call('ZCARD', key)
            oldest = math.max(oldest, waited(p, tenant, key, now))
        end)
    end
    local reply = {
        'term', call('GET', p .. 'term') or '0', 'inbox', inbox,
        'taken', call('ZCARD', p .. 'taken'),
        'ready', ready, 'delayed', call('ZCARD', p .. 'dly'), 'running', call('ZCARD', p .. 'ls'),
        'dead', call('ZCARD', p .. 'dead'), 'oldest_ms', oldest, 'raw', call('HLEN', p .. 'raw'),
    }
    local bytes = tonumber(call('HGET', p .. 'bytes', '*') or 0)
    reply[#reply + 1] = 'bytes'
    reply[#reply + 1] = math.max(0, bytes)
    reply[#reply + 1] = 'paused'
    reply[#reply + 1] = call('HEXISTS', p .. 'paused', '*')
    reply[#reply + 1] = 'paused_tenants'
    reply[#reply + 1] = call('HLEN', p .. 'paused') - reply[#reply - 1]
    for _, s in ipairs(call('HGETALL', p .. 'n')) do reply[#reply + 1] = s end
    return reply
end

-- How many jobs of each tenant run.
local function running_of(p)
    local n = {}
    for _, member in ipairs(call('ZRANGE', p .. 'ls', 0, -1)) do
        local tenant = split(member)
        if tenant then n[tenant] = (n[tenant] or 0) + 1 end
    end
    return n
end

-- (no arguments) -> {{tenant, id, class, ms} or nothing, {tenant, paused, inbox, running, ms that
-- its oldest ready job has waited, ready jobs of class 0, 1, 2, 3}...}. First the oldest ready job
-- of all.
local function depths(keys, args)
    local p = prefix(keys, args, 0)
    local now, running, oldest, most, reply = now_ms(), running_of(p), {}, -1, {{}}
    for _, tenant in ipairs(call('HKEYS', p .. 'tenants')) do
        local row = {tenant, call('HEXISTS', p .. 'paused', tenant),
                     call('LLEN', p .. 'in:' .. tenant), running[tenant] or 0, 0, 0, 0, 0, 0}
        each_ready(p, tenant, function(key, _, class)
            local n = call('ZCARD', key)
            row[6 + class] = row[6 + class] + n
            local ms = n > 0 and waited(p, tenant, key, now) or -1
            row[5] = math.max(row[5], ms)
            if ms > most then
                most, oldest = ms, {tenant, call('ZRANGE', key, 0, 0)[1], class, ms}
            end
        end)
        reply[#reply + 1] = row
    end
    reply[1] = oldest
    return reply
end

-- term, or 0 of a broker that does not lead -> ok. Touches every command that the functions use, so
-- that missing rights show at once.
local function selftest(keys, args)
    local p = prefix(keys, args, 1)
    local term = uint(args[1], 'term', 0, EXACT)
    if term > 0 then fence(p, term) end
    local k = p .. 'selftest'
    local tries = {
        {'HSETNX', p .. 'tenants', 'default', '1'}, -- Redis may have come back empty
        {'TIME'}, {'GET', p .. 'term'}, {'SET', k, '1', 'PX', '60000'}, {'INCR', k},
        {'INCRBY', k, '1'},
        {'APPEND', k, 'x'}, {'STRLEN', k}, {'EXISTS', k}, {'PEXPIRE', k, '60000'}, {'PTTL', k},
        {'DEL', k},
        {'HSET', k, 'a', '1'}, {'HSETNX', k, 'b', '1'}, {'HGET', k, 'a'}, {'HMGET', k, 'a', 'b'},
        {'HGETALL', k}, {'HKEYS', k}, {'HLEN', k}, {'HSTRLEN', k, 'a'}, {'HEXISTS', k, 'a'},
        {'HINCRBY', k, 'a', '1'}, {'HDEL', k, 'b'}, {'DEL', k},
        {'ZADD', k, '1', 'a'}, {'ZSCORE', k, 'a'}, {'ZCARD', k},
        {'ZRANGE', k, '-inf', '1', 'BYSCORE', 'LIMIT', '0', '1'}, {'ZREM', k, 'a'},
        {'XADD', k, 'MAXLEN', '~', '10', '*', 'a', '1'}, {'XRANGE', k, '-', '+'}, {'DEL', k},
        {'RPUSH', k, 'a'}, {'LINDEX', k, '0'}, {'LLEN', k}, {'LTRIM', k, '0', '-1'}, {'DEL', k},
        {'ZADD', k, '1', 'a'}, {'ZRANK', k, 'a'}, {'DEL', k},
    }
    for _, t in ipairs(tries) do
        local reply = redis.pcall(unpack(t))
        if type(reply) == 'table' and reply.err then
            refuse('SELFTEST', t[1] .. ' fails: ' .. reply.err)
        end
    end
    return 'ok'
end

-- --- registration

local function register(function_name, body, flags)
    redis.register_function{
        function_name = function_name,
        callback = function(keys, args)
            local ok, reply = pcall(body, keys, args)
            if ok then return reply end
            local text = type(reply) == 'table' and reply.err or tostring(reply)
            return {err = string.match(text, '^%u+ ') and text or 'ERR ' .. text}
        end,
        flags = flags or {},
    }
end

-- A Redis without room takes nothing in, but drains.
local DRAINS, READS = {'allow-oom'}, {'no-writes'}

register('take', take)
register('recover', recover)
register('admit', admit)
register('reject', reject)
register('cancel', cancel, DRAINS)
register('joins', joins, DRAINS)
register('gather', gather, READS)
register('split', split_job)
register('reduce', reduce, DRAINS)
register('joined', joined, DRAINS)
register('window', window, READS)
register('claim', claim, DRAINS)
register('renew', renew, DRAINS)
register('checkpoint', checkpoint)
register('stream', stream)
register('done', done, DRAINS)
register('fail', fail, DRAINS)
register('nack', nack, DRAINS)
register('reap', reap, DRAINS)
register('promote', promote, DRAINS)
register('stats', stats, READS)
register('models', models, READS)
register('depths', depths, READS)
register('tenants', tenants, READS)
register('tenant_set', tenant_set, DRAINS)
register('pause', pause, DRAINS)
register('pause_pipeline', pause_pipeline, DRAINS)
register('pauses', pauses, READS)
register('busy', busy, READS)
register('dead', dead, READS)
register('retry', retry)
register('purge', purge, DRAINS)
register('show', show, READS)
register('why', why, READS)
register('lead', lead, DRAINS)
register('resign', resign, DRAINS)
register('fleet', fleet, DRAINS)
register('fleet_read', fleet_read, READS)
register('selftest', selftest, DRAINS)
