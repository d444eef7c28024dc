#!lua name=penstock_v1
-- The state machine of Penstock's queue: every transition of a job is one of these functions, so
-- that it happens wholly and in one order. README.md in this folder lists keys, arguments, replies.
-- The library is one program in eight files, in this order: base, ingest, split, run, admin, why,
-- lead, time.
--
-- A function is atomic but not transactional: an error in the middle keeps what was written. So
-- every argument is validated before the first write, what is moved is copied first and removed
-- last, and what is left of a half-done move is recognised when it is done again.
--
-- All keys share the tag of KEYS[1] = ps:{queue}:term. Users' messages are never parsed here.

local EVENTS_MAX = 100000               -- kept in a tenant's event stream, about
local DEAD_TTL_MS = 30 * 24 * 3600 * 1000   -- life of a dead letter, and of a batch's counts
local LOST_MAX = 3                      -- groups lost before a job runs alone; one more ends it
local MANY = 10000                      -- most jobs or messages in one call
local EXACT = 9007199254740992          -- integers up to here are exact
local BYTES_MAX = 512 * 1024 * 1024
local TEXT_MAX = 4096
local WEIGHT_MAX = 1000
local PAUSED_MAX = 256                   -- pipelines that are remembered as paused
local BLOCK_ROWS = 64                    -- tokens of a KV block

-- While the library loads, redis.call is not there yet.
local function call(...) return redis.call(...) end

-- --- arguments

local function refuse(code, text)
    error({err = code .. ' ' .. text})
end

local function uint(s, what, least, most)
    local n = type(s) == 'string' and #s <= 16 and string.match(s, '^%d+$') and tonumber(s)
    if not n or n < least or n > most then
        refuse('BADARG', string.format('%s is not an integer from %.0f to %.0f', what, least, most))
    end
    return n
end

local function name(s, what, most)
    if type(s) ~= 'string' or #s < 1 or #s > most or not string.match(s, '^[%w_%-]+$') then
        refuse('BADARG', string.format('%s is not 1 to %d of A-Z a-z 0-9 _ -', what, most))
    end
    return s
end

local function model_name(s)
    if type(s) ~= 'string' or #s < 1 or #s > 256 or not string.match(s, '^[%w_%.%-]+$') then
        refuse('BADARG', 'model is not 1 to 256 of A-Z a-z 0-9 . _ -')
    end
    return s
end

local function bytes(s, what, most)
    if type(s) ~= 'string' or #s > most then
        refuse('BADARG', string.format('%s is longer than %.0f bytes', what, most))
    end
    return s
end

-- The keys' common beginning.
local function prefix(keys, args, least, most)
    local p = #keys == 1 and string.match(keys[1], '^(ps:{[%w_%-]+}:)term$')
    if not p then refuse('BADARG', 'the key is not ps:{queue}:term') end
    if #args < least or #args > (most or least) then
        refuse('BADARG', string.format('%d arguments', #args))
    end
    return p
end

-- n-tuples at the end of the arguments.
local function tuples(args, first, n)
    local count = (#args - first + 1) / n
    if count < 1 or count > MANY or count ~= math.floor(count) then
        refuse('BADARG', string.format('not 1 to %d lots of %d arguments', MANY, n))
    end
    return count
end

local function term_of(args) return uint(args[1], 'term', 1, EXACT) end

-- A lower term than the queue's belongs to a broker that has been replaced.
local function fence(p, term, read_only)
    local rules = tonumber(call('GET', p .. 'term') or 0)
    if term < rules then
        refuse('STALETERM', string.format('term %.0f is over, %.0f rules', term, rules))
    end
    if term > rules and not read_only then call('SET', p .. 'term', string.format('%.0f', term)) end
end

local function now_ms()
    local t = call('TIME')
    return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function str(n) return string.format('%.0f', n) end

-- --- jobs

local function job_key(p, tenant, id) return p .. 'j:' .. tenant .. ':' .. id end

local function join_key(p, job) return p .. 'join:' .. job.model end

-- `job`: a record, or just class and model.
local function ready_key(p, tenant, job)
    return p .. 'rdy:' .. job.class .. ':' .. tenant .. ':' .. job.model
end

-- All ready sets of a tenant; the models' are those that jobs ever came for.
local function each_ready(p, tenant, fn)
    for _, model in ipairs(call('HKEYS', p .. 'models')) do
        for class = 0, 3 do
            fn(ready_key(p, tenant, {class = class, model = model}), model, class)
        end
    end
end

local function stream_key(p, tenant, id) return p .. 't:' .. tenant .. ':' .. id end

local function load_job(p, tenant, id)
    local flat = call('HGETALL', job_key(p, tenant, id))
    if #flat == 0 then return nil end
    local job = {}
    for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
    return job
end

local function split(member) return string.match(member, '^([^:]+):(.+)$') end

local function ended(job)
    return job.state ~= 'queued' and job.state ~= 'running' and job.state ~= 'waiting'
end

-- Children stand in their parent's place in the line.
local function place(job) return job.place or job.seq end

-- Where the bytes that run are: a job that was split first has others than it came with.
local function message_at(job) return job.run or job.seq end

local child_ended, parent_ended -- in the file on jobs that are split

-- --- tenants

-- Weight and budgets (0: none) as `tenants` has them; a number alone is a weight.
local function tenant_of(value)
    local function field(what) return tonumber(string.match(value, what .. '=(%d+)') or 0) end
    local weight = string.match(value, '^%d+$') or field('weight')
    return {weight = math.min(math.max(tonumber(weight), 1), WEIGHT_MAX), bytes = field('bytes'),
            jobs = field('jobs'), tokens = field('tokens')}
end

-- Bytes of messages that wait or run, of a tenant and of all.
local function weigh(p, tenant, n)
    if n == 0 then return end
    call('HINCRBY', p .. 'bytes', tenant, n)
    call('HINCRBY', p .. 'bytes', '*', n)
end

local function lighten(p, tenant, seq) weigh(p, tenant, -call('HSTRLEN', p .. 'raw', seq)) end

local function is_paused(p, tenant)
    local h = call('HMGET', p .. 'paused', '*', tenant)
    return h[1] or h[2]
end

local function count(p, what) call('HINCRBY', p .. 'n', what, 1) end

local function count_batch(p, tenant, batch, what)
    if not batch then return end
    local key = p .. 'b:' .. tenant .. ':' .. batch
    call('HINCRBY', key, what, 1)
    call('PEXPIRE', key, DEAD_TTL_MS)
end

local function event(p, tenant, id, what, attempt)
    call('XADD', p .. 'ev:' .. tenant, 'MAXLEN', '~', EVENTS_MAX, '*',
         'id', id, 'event', what, 'attempt', attempt or '0')
end

-- Publishes what of the text lies beyond the bytes that were published; how many are by now. What
-- would leave a gap waits for the text before it, or for the end (`last`).
local function publish(p, tenant, id, job, offset, text, last)
    local shown = tonumber(job.shown or 0)
    if not job.stream or (offset > shown and not last) then return shown end
    local from = math.max(offset, shown)
    local more = string.sub(text, from - offset + 1)
    if more == '' then return shown end
    local key, now_shown = stream_key(p, tenant, id), from + #more
    call('XADD', key, '*', 'attempt', job.attempt or '0', 'offset', str(from), 'bytes', more)
    call('HSET', job_key(p, tenant, id), 'shown', str(now_shown))
    if shown == 0 then call('PEXPIRE', key, DEAD_TTL_MS) end -- `finish` says how long in the end
    return now_shown
end

-- What a job has by now: the ids of its checkpoint as a msgpack array, how many, and the text that
-- was published of it (nil without `stream`).
local function so_far(p, tenant, id, job)
    local ids = call('GET', p .. 'c:' .. tenant .. ':' .. id) or ''
    local n, text = math.floor(#ids / 4), nil
    -- Each int32, little-endian, becomes a uint32 of msgpack.
    ids = string.gsub(string.sub(ids, 1, 4 * n), '(.)(.)(.)(.)', '\206%4%3%2%1')
    if job.stream then
        local pieces = {}
        for i, entry in ipairs(call('XRANGE', stream_key(p, tenant, id), '-', '+')) do
            pieces[i] = entry[2][6]
        end
        text = table.concat(pieces)
    end
    return {ids = '\221' .. struct.pack('>I4', n) .. ids, n = n, text = text}
end

-- The result of a job that no group finished: a msgpack map in the form of every result. `had`:
-- what so_far says of it, if it says anything.
local function make_result(id, job, status, code, text, had)
    local n = 10
    local prompt = had and tonumber(job.prompt or 0) or 0
    local p0, c0, o0 = string.match(job.prior or '0 0 0', '^(%d+) (%d+) (%d+)$')
    local s = cmsgpack.pack('v', 1, 'id', id, 'status', status,
                            'attempts', tonumber(job.starts or 0), 'error') .. string.char(0x83)
        .. cmsgpack.pack('code', code, 'message', text, 'retryable', false, 'tokens')
        .. (had and had.ids or string.char(0x90)) .. cmsgpack.pack('usage') .. string.char(0x83)
        .. cmsgpack.pack('prompt', prompt + p0, 'cached', tonumber(c0), 'completion',
                         (had and had.n or 0) + o0, 'timing')
        .. string.char(0x83)
        .. cmsgpack.pack('queued', 0, 'prefill', 0, 'decode', 0, 'resumed', 0, 'engine')
        .. string.char(0x80)
    if had and had.text then n, s = n + 1, s .. cmsgpack.pack('text', had.text) end
    if job.custom and job.custom ~= '' then
        n, s = n + 1, s .. cmsgpack.pack('custom_id', job.custom)
    end
    return string.char(0x80 + n) .. s
end

-- Ends an admitted job. Result, event and record are written before bytes and indexes go. A failed
-- job is a dead letter: it keeps record and bytes until promote drops it.
local function finish(p, tenant, id, job, state, result, now, more)
    local key, member = job_key(p, tenant, id), tenant .. ':' .. id
    call('SET', p .. 'r:' .. member, result, 'PX', job.ttl)
    if job.stream then call('PEXPIRE', stream_key(p, tenant, id), job.ttl) end
    if not job.parent then event(p, tenant, id, state, job.attempt) end
    call('HSET', key, 'state', state, 'ended', now, unpack(more or {}))
    local dead = state == 'failed' and not job.parent
    if dead then
        call('ZADD', p .. 'dead', now, member)
    else
        call('PEXPIRE', key, job.ttl)
    end
    count(p, state)
    count_batch(p, tenant, job.batch, state)
    call('ZREM', p .. 'ls', member)
    call('ZREM', p .. 'dly', member)
    call('ZREM', p .. 'exp', member)
    call('ZREM', ready_key(p, tenant, job), id)
    call('DEL', p .. 'c:' .. member)
    lighten(p, tenant, job.seq)
    if not dead then call('HDEL', p .. 'raw', job.seq) end
    if job.run then
        lighten(p, tenant, job.run)
        call('HDEL', p .. 'raw', job.run)
    end
    if job.split then parent_ended(p, tenant, id, job, state, now) end
    if job.parent then child_ended(p, tenant, id, job, state, now, more) end
end

local function finish_failed(p, tenant, id, job, code, text, result, now)
    if result == '' then result = make_result(id, job, 'error', code, text) end
    finish(p, tenant, id, job, 'failed', result, now, {'code', code, 'text', text})
    return 'dead'
end

-- A job that is given up, with what its last attempt saved.
local function finish_early(p, tenant, id, job, state, why, now)
    local had = job.starts and so_far(p, tenant, id, job)
    finish(p, tenant, id, job, state, make_result(id, job, state, state, why, had), now)
    return state
end

local function finish_cancelled(p, tenant, id, job, now)
    return finish_early(p, tenant, id, job, 'cancelled', 'the job was cancelled', now)
end

local function finish_expired(p, tenant, id, job, now)
    return finish_early(p, tenant, id, job, 'expired', 'the deadline passed', now)
end

local function late(job, now) return job.deadline and tonumber(job.deadline) <= now end

-- A running job that should not run again ends here; nil: it may.
local function ends_now(p, tenant, id, job, now)
    if job.cancel then return finish_cancelled(p, tenant, id, job, now) end
    if late(job, now) then return finish_expired(p, tenant, id, job, now) end
    return nil
end

-- Back in the queue at once, at its old place.
local function requeue(p, tenant, id, job, lost, now)
    local word = ends_now(p, tenant, id, job, now)
    if word then return word end
    local key = job_key(p, tenant, id)
    if lost then
        local times = call('HINCRBY', key, 'lost', 1)
        count(p, 'lost')
        if times > LOST_MAX then
            return finish_failed(p, tenant, id, job, 'poison',
                string.format('%d groups were lost while they held this job', times), '', now)
        end
        if times == LOST_MAX then call('HSET', key, 'poison', 1) end
    end
    call('ZADD', ready_key(p, tenant, job), place(job), id)
    call('HSET', key, 'state', 'queued')
    call('ZREM', p .. 'ls', tenant .. ':' .. id)
    return 'ready'
end

-- The job if this attempt runs it; else nil and the word for the caller.
local function running(p, tenant, id, attempt)
    local job = load_job(p, tenant, id)
    if not job then return nil, 'unknown' end
    if job.state ~= 'running' or job.attempt ~= attempt then
        count(p, 'stale')
        return nil, 'stale', job
    end
    return job
end

local function attempt_of(args, i)
    return name(args[i], 'tenant', 64), name(args[i + 1], 'id', 64),
           str(uint(args[i + 2], 'attempt', 1, EXACT))
end
