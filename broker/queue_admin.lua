
-- What people ask of a queue: tenants, pauses, dead letters, a look at one job. These carry no
-- term: whoever may call them acts beside the broker, which sees the outcome in Redis.

-- (no arguments) -> {paused, {tenant, weight, bytes, jobs, tokens, paused, bytes now}...}; a budget
-- of 0 is none
local function tenants(keys, args)
    local p = prefix(keys, args, 0)
    local paused, reply = {}, {}
    for _, who in ipairs(call('HKEYS', p .. 'paused')) do paused[who] = 1 end
    reply[1] = paused['*'] or 0
    local flat = call('HGETALL', p .. 'tenants')
    for i = 1, #flat, 2 do
        local t = tenant_of(flat[i + 1])
        reply[#reply + 1] = {flat[i], str(t.weight), str(t.bytes), str(t.jobs), str(t.tokens),
                             paused[flat[i]] or 0, call('HGET', p .. 'bytes', flat[i]) or '0'}
    end
    return reply
end

-- add or set, tenant, weight, bytes, jobs, tokens ('' each: as it is) -> ok | exists | unknown
local function tenant_set(keys, args)
    local p = prefix(keys, args, 6)
    local how, tenant = args[1], name(args[2], 'tenant', 64)
    if how ~= 'add' and how ~= 'set' then refuse('BADARG', 'neither add nor set') end
    local given = {
        weight = args[3] ~= '' and uint(args[3], 'weight', 1, WEIGHT_MAX),
        bytes = args[4] ~= '' and uint(args[4], 'bytes', 0, EXACT),
        jobs = args[5] ~= '' and uint(args[5], 'jobs', 0, EXACT),
        tokens = args[6] ~= '' and uint(args[6], 'tokens', 0, EXACT),
    }
    local old = call('HGET', p .. 'tenants', tenant)
    if how == 'add' and old then return 'exists' end
    if how == 'set' and not old then return 'unknown' end
    local t = tenant_of(old or '1')
    for what, n in pairs(given) do
        if n then t[what] = n end
    end
    call('HSET', p .. 'tenants', tenant,
         string.format('weight=%.0f bytes=%.0f jobs=%.0f tokens=%.0f', t.weight, t.bytes, t.jobs,
                       t.tokens))
    return 'ok'
end

-- tenant or * for the queue, 1 or 0 -> ok | unknown
local function pause(keys, args)
    local p = prefix(keys, args, 2)
    local who, on = args[1], uint(args[2], 'pause', 0, 1) == 1
    if who ~= '*' then name(who, 'tenant', 64) end
    if who ~= '*' and call('HEXISTS', p .. 'tenants', who) == 0 then return 'unknown' end
    if on then
        call('HSETNX', p .. 'paused', who, now_ms())
    else
        call('HDEL', p .. 'paused', who)
    end
    return 'ok'
end

-- model, number of a pipeline, 1 or 0 -> ok | full
local function pause_pipeline(keys, args)
    local p = prefix(keys, args, 3)
    local which = model_name(args[1]) .. '/' .. str(uint(args[2], 'pipeline', 1, EXACT))
    local key = p .. 'paused_pipelines'
    if uint(args[3], 'pause', 0, 1) == 0 then
        call('HDEL', key, which)
        return 'ok'
    end
    if call('HLEN', key) >= PAUSED_MAX and call('HEXISTS', key, which) == 0 then return 'full' end
    call('HSETNX', key, which, now_ms())
    return 'ok'
end

-- (no arguments) -> {{model, number of a pipeline}...}
local function pauses(keys, args)
    local p = prefix(keys, args, 0)
    local reply = {}
    for i, which in ipairs(call('HKEYS', p .. 'paused_pipelines')) do
        reply[i] = {string.match(which, '^(.+)/(%d+)$')}
    end
    return reply
end

-- tenant or * for the queue -> how many of its jobs run. After a pause no more start, so that 0
-- stays 0 until it is resumed.
local function busy(keys, args)
    local p = prefix(keys, args, 1)
    if args[1] == '*' then return call('ZCARD', p .. 'ls') end
    local tenant, n = name(args[1], 'tenant', 64), 0
    for _, member in ipairs(call('ZRANGE', p .. 'ls', 0, -1)) do
        if split(member) == tenant then n = n + 1 end
    end
    return n
end

-- --- dead letters

-- tenant, offset, limit -> {next offset or 0, {id, time, code, text, attempts, lost}...}: looks at
-- `limit` letters of all tenants, newest first
local function dead(keys, args)
    local p = prefix(keys, args, 3)
    local tenant, offset = name(args[1], 'tenant', 64), uint(args[2], 'offset', 0, EXACT)
    local limit = uint(args[3], 'limit', 1, MANY)
    local found = call('ZRANGE', p .. 'dead', offset, offset + limit - 1, 'REV', 'WITHSCORES')
    local reply = {#found == 2 * limit and offset + limit or 0}
    for i = 1, #found, 2 do
        local of, id = split(found[i])
        if of == tenant then
            local h = call('HMGET', job_key(p, of, id), 'code', 'text', 'starts', 'lost')
            reply[#reply + 1] = {id, found[i + 1], h[1] or '', h[2] or '', h[3] or '0', h[4] or '0'}
        end
    end
    return reply
end

local function dead_job(p, tenant, id)
    local job = load_job(p, tenant, id)
    return job and call('ZSCORE', p .. 'dead', tenant .. ':' .. id) and job or nil
end

-- tenant, id -> ok | unknown | bytes_lost. Its message goes into the inbox again, and is a new job.
local function retry(keys, args)
    local p = prefix(keys, args, 2)
    local tenant, id = name(args[1], 'tenant', 64), name(args[2], 'id', 64)
    local job = dead_job(p, tenant, id)
    if not job then return 'unknown' end
    local message = call('HGET', p .. 'raw', job.seq)
    if not message then return 'bytes_lost' end
    call('RPUSH', p .. 'in:' .. tenant, message)
    if job.batch then
        call('HINCRBY', p .. 'b:' .. tenant .. ':' .. job.batch, 'total', -1)
        call('HINCRBY', p .. 'b:' .. tenant .. ':' .. job.batch, 'failed', -1)
    end
    drop_dead(p, tenant, id, job)
    return 'ok'
end

-- tenant, id -> ok | unknown
local function purge(keys, args)
    local p = prefix(keys, args, 2)
    local tenant, id = name(args[1], 'tenant', 64), name(args[2], 'id', 64)
    local job = dead_job(p, tenant, id)
    if not job then return 'unknown' end
    drop_children(p, tenant, id, job)
    drop_dead(p, tenant, id, job)
    return 'ok'
end

-- --- one job

-- Which budget of a tenant a job of `need` blocks has to wait for; nil: none. As dispatch counts: a
-- job that is larger than the budget runs when none other of the tenant does.
local function over_budget(p, tenant, need)
    local t = tenant_of(call('HGET', p .. 'tenants', tenant) or '1')
    if t.jobs == 0 and t.tokens == 0 then return nil end
    local n, blocks = 0, 0
    for _, member in ipairs(call('ZRANGE', p .. 'ls', 0, -1)) do
        local of, id = split(member)
        if of == tenant then
            n = n + 1
            blocks = blocks + tonumber(call('HGET', job_key(p, of, id), 'need') or 0)
        end
    end
    if n > 0 and t.jobs > 0 and n >= t.jobs then return 'budget_jobs' end
    local most = math.ceil(t.tokens / BLOCK_ROWS)
    if n > 0 and t.tokens > 0 and blocks + need > most then return 'budget_tokens' end
    return nil
end

-- Whether a pipeline takes jobs of a model, by what the leader said last; nil: it said nothing.
local function is_served(p, model)
    local good, record = pcall(cjson.decode, call('GET', p .. 'fleet') or '')
    if not good or type(record) ~= 'table' or type(record.models) ~= 'table' then return nil end
    for _, m in ipairs(record.models) do
        for _, pipeline in ipairs(m.name == model and m.pipelines or {}) do
            if pipeline.state == 'serving' and not pipeline.paused then return true end
        end
    end
    return false
end

-- What a job that does not run waits for; nil: it has ended, or runs.
local function waits_for(p, tenant, id, job)
    if job.state ~= 'queued' and job.state ~= 'waiting' then return nil end
    local due = call('ZSCORE', p .. 'dly', tenant .. ':' .. id)
    if due then return job.fails and 'backoff' or 'at' end
    if job.state == 'waiting' then
        return call('ZSCORE', join_key(p, job), tenant .. ':' .. id) and 'join' or 'children'
    end
    local paused = call('HMGET', p .. 'paused', '*', tenant)
    if paused[1] then return 'queue_paused' end
    if paused[2] then return 'tenant_paused' end
    if call('EXISTS', p .. 'lead') == 0 then return 'no_broker' end
    if is_served(p, job.model) == false then return 'no_pipeline' end
    return over_budget(p, tenant, tonumber(job.need or 0)) or job.poison and 'alone' or 'turn'
end

-- Ready jobs of a model in the classes before this one, of all tenants.
local function before_class(p, class, model)
    local n = 0
    for _, tenant in ipairs(call('HKEYS', p .. 'tenants')) do
        for c = 0, class - 1 do
            n = n + call('ZCARD', ready_key(p, tenant, {class = c, model = model}))
        end
    end
    return n
end

-- tenant, id -> {name, value...}: its record, and where it is; nothing: there is none
local function show(keys, args)
    local p = prefix(keys, args, 2)
    local tenant, id = name(args[1], 'tenant', 64), name(args[2], 'id', 64)
    local reply, job = call('HGETALL', job_key(p, tenant, id)), load_job(p, tenant, id)
    if not job then return {} end
    local member = tenant .. ':' .. id
    local function say(what, value)
        if value then
            reply[#reply + 1] = what
            reply[#reply + 1] = value
        end
    end
    say('now', str(now_ms()))
    say('bytes', call('HSTRLEN', p .. 'raw', message_at(job)))
    say('checkpoint', call('STRLEN', p .. 'c:' .. member))
    say('due', call('ZSCORE', p .. 'dly', member))
    say('lease', call('ZSCORE', p .. 'ls', member))
    say('dead', call('ZSCORE', p .. 'dead', member))
    if job.split then say('open', call('ZCARD', open_key(p, tenant, id))) end
    say('waits', waits_for(p, tenant, id, job))
    if is_paused(p, tenant) then say('paused', 1) end
    if job.ended then
        local dies = call('ZSCORE', p .. 'dead', member)
        say('until', str(dies and dies + DEAD_TTL_MS or job.ended + (job.ttl or 0)))
    end
    local ahead = job.class and call('ZRANK', ready_key(p, tenant, job), id)
    if ahead then
        say('ahead', ahead)
        say('waiting', call('ZCARD', ready_key(p, tenant, job)))
        say('before', before_class(p, tonumber(job.class), job.model))
    end
    return reply
end
