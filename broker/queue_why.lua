
-- Why a job waits: what `show` says of it, and what goes before it; or where its message is.

local WHY_MESSAGES = 1000               -- of an inbox that are looked into
local WHY_BYTES = 8 * 1024 * 1024       -- of all of them
local WHY_SAMPLE = 256                  -- jobs whose tokens are looked at, WHY_QUEUE of a queue
local WHY_QUEUE = 8

-- Whether a message has this id, as every encoder writes it; it is not parsed.
local function has_id(message, id)
    local n = #id
    local head = n < 32 and string.char(0xa0 + n) or string.char(0xd9, n)
    return string.find(message, '\162id' .. head .. id, 1, true) ~= nil
end

-- Of a message that was not admitted yet: taken, or its place in the inbox.
local function find_message(p, tenant, id, say)
    local total = 0
    for _, member in ipairs(call('ZRANGE', p .. 'taken', 0, WHY_SAMPLE - 1)) do
        local seq, of = split(member)
        local m = of == tenant and call('HGET', p .. 'raw', seq)
        if m and has_id(m, id) then return say('place', 'taken') end
        total = total + (m and #m or 0)
        if total > WHY_BYTES then break end
    end
    local inbox = p .. 'in:' .. tenant
    total = 0
    for i = 0, WHY_MESSAGES - 1 do
        local m = call('LINDEX', inbox, i)
        total = total + (m and #m or 0)
        if not m or total > WHY_BYTES then break end
        if has_id(m, id) then
            say('place', 'inbox')
            say('position', i + 1)
            break
        end
    end
    say('inbox', call('LLEN', inbox))
    local known = call('HGET', p .. 'tenants', tenant)
    if not known then return say('waits', 'no_tenant') end
    if call('EXISTS', p .. 'lead') == 0 then return say('waits', 'no_broker') end
    local budget = tenant_of(known).bytes
    local used = tonumber(call('HGET', p .. 'bytes', tenant) or 0)
    if budget > 0 and used >= budget then
        say('waits', 'bytes')
        say('bytes_used', str(used))
        say('bytes_budget', str(budget))
    end
end

-- Ready jobs that start before this one, as far as classes and shares tell, and their mean tokens
-- of output, from a sample.
local function jobs_first(p, tenant, job, ahead)
    local own, class = tenant_of(call('HGET', p .. 'tenants', tenant) or '1').weight,
                       tonumber(job.class)
    local n, sampled, tokens = 0, 0, 0
    local function add(of, c, most)
        local key = ready_key(p, of, {class = c, model = job.model})
        local there = math.min(call('ZCARD', key), most)
        local look = math.min(there, WHY_QUEUE, WHY_SAMPLE - sampled)
        n = n + there
        for _, id in ipairs(look > 0 and call('ZRANGE', key, 0, look - 1) or {}) do
            tokens = tokens + tonumber(call('HGET', job_key(p, of, id), 'most') or 0)
            sampled = sampled + 1
        end
    end
    add(tenant, class, ahead)
    for _, of in ipairs(call('HKEYS', p .. 'tenants')) do
        if call('HEXISTS', p .. 'paused', of) == 0 then
            for c = 0, class - 1 do add(of, c, EXACT) end
            local weight = tenant_of(call('HGET', p .. 'tenants', of)).weight
            if of ~= tenant then add(of, class, math.ceil((ahead + 1) * weight / own)) end
        end
    end
    return n, sampled > 0 and tokens / sampled or tonumber(job.most or 0)
end

-- tenant, id -> {name, value...}: as `show`; of a ready job `first` and `mean`, of one that has no
-- record `place`, `position`, `inbox`, `waits`
local function why(keys, args)
    local p, tenant, id = prefix(keys, args, 2), args[1], args[2]
    local reply = show(keys, args)
    local function say(what, value)
        reply[#reply + 1] = what
        reply[#reply + 1] = value
    end
    local job = load_job(p, tenant, id)
    if not job then
        find_message(p, tenant, id, say)
        return reply
    end
    local ahead = job.class and call('ZRANK', ready_key(p, tenant, job), id)
    if ahead then
        local n, mean = jobs_first(p, tenant, job, ahead)
        say('first', str(n))
        say('mean', str(mean))
    end
    return reply
end
