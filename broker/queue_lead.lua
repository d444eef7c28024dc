
-- Which broker leads: a lease that it renews, under a term that only grows; and what the leader
-- says of its fleet.

-- The term and the owner of the lease, if it is held.
local function lease_of(p)
    local term, owner = string.match(call('GET', p .. 'lead') or '', '^(%d+) (.+)$')
    return term, owner
end

-- owner, ms of the lease, term (0: it does not lead) -> {lead | standby, term, owner of the lease,
-- ms that it lasts}. Nobody's lease, and what the owner's earlier life held, is given under the
-- next term. Renewed under its term for as long as nobody has taken a higher one.
local function lead(keys, args)
    local p = prefix(keys, args, 3)
    local owner = args[1]
    if #owner < 1 or #owner > 128 or string.find(owner, '[%c ]') then
        refuse('BADARG', 'the owner is not 1 to 128 bytes without spaces')
    end
    local ttl, term = uint(args[2], 'ttl', 1, DEAD_TTL_MS), uint(args[3], 'term', 0, EXACT)
    if term > 0 then
        fence(p, term)
    else
        local _, holder = lease_of(p)
        if holder and holder ~= owner then
            local rules = call('GET', p .. 'term') or '0'
            return {'standby', rules, holder, str(math.max(0, call('PTTL', p .. 'lead')))}
        end
        call('HSETNX', p .. 'tenants', 'default', '1')
        term = call('INCR', p .. 'term')
    end
    call('SET', p .. 'lead', str(term) .. ' ' .. owner, 'PX', ttl)
    return {'lead', str(term), owner, str(ttl)}
end

-- term -> ok. The lease ends now: whoever stands by need not wait for it.
local function resign(keys, args)
    local p = prefix(keys, args, 1)
    local term = term_of(args)
    fence(p, term)
    if lease_of(p) == str(term) then call('DEL', p .. 'lead') end
    return 'ok'
end

-- term, ms that it is good for, what the fleet looks like (JSON) -> ok
local function fleet(keys, args)
    local p = prefix(keys, args, 3)
    local term, ttl = term_of(args), uint(args[2], 'ttl', 1, DEAD_TTL_MS)
    local record = bytes(args[3], 'the record', BYTES_MAX)
    fence(p, term)
    call('SET', p .. 'fleet', record, 'PX', ttl)
    return 'ok'
end

-- (no arguments) -> {lease, ms that it lasts, what the leader said of its fleet}; '' for what there
-- is not
local function fleet_read(keys, args)
    local p = prefix(keys, args, 0)
    return {call('GET', p .. 'lead') or '', call('PTTL', p .. 'lead'),
            call('GET', p .. 'fleet') or ''}
end
