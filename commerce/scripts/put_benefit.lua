-- include: commerce/seats
-- Puts a benefit's terms in force: opens it, changes it, or builds its counters anew from PostgreSQL.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 record JSON {generation, version, status, reason, quota, needs, per_person, bit, starts_at, closes_at, seat_ms,
--       confirmed, ranked, changes, claims: [[member, ranks, key, reply], …], held: [[member, until], …] newest change first,
--       queue: [member, …], had: [member, …], longer: [member, …], told: [rank, …], untold: [rank, …] (not noted as told)};
--       the counters are used only when they are built
--       3 state parts JSON · 4 event JSON or '' · 5 digest under which claims are remembered
-- Returns {'ok', 'built' | 'changed' | 'same'}
-- All or none. An older generation or version changes nothing.
local gone = guard() if gone then return gone end
local record = cjson.decode(ARGV[2])
local generation, show = tonumber(terms.generation or '-1'), redis.call('HGET', META, 'generation')
local build = missing() or record.generation > generation
if not build and (record.generation < generation or record.version <= number('version')) then return {'ok', 'same'} end

if build then
  -- Told though its row does not say so yet, when the bit is still there. The others are told by announce_claims.lua,
  -- and that none is left by the last of them.
  local untold = {}
  for _, rank in ipairs(record.untold) do
    if redis.call('GETBIT', TOLD, rank) == 1 then record.told[#record.told + 1] = rank
    else untold[#untold + 1] = rank end
  end
  redis.call('DEL', B, CLAIMS, HELD, SETTLING, QUEUE, HAD, OUTBOX, TOLD, SPARE)
  redis.call('HSET', B, 'generation', record.generation, 'show', show, 'confirmed', record.confirmed,
    'ranked', record.ranked, 'changes', record.changes, 'freed', 0, 'sold_told', #untold == 0 and 1 or 0)
  for _, claim in ipairs(record.claims) do
    redis.call('HSET', CLAIMS, claim[1], claim[2])
    remember(claim[1], claim[3], ARGV[5], claim[4])
  end
  for _, rank in ipairs(record.told) do redis.call('SETBIT', TOLD, rank, 1) end
  for _, rank in ipairs(untold) do redis.call('HSET', B, 'counted:' .. rank, '') end
  for _, member in ipairs(record.had) do redis.call('SADD', HAD, member) end
  for _, member in ipairs(record.longer) do redis.call('HSET', B, 'longer:' .. member, '') end
  for place, member in ipairs(record.queue) do redis.call('ZADD', QUEUE, place, member) end
  redis.call('HSET', B, 'places', #record.queue)
  -- Rows may lag behind what was held when the store was lost: never more than the quota allows.
  local left = record.quota - record.confirmed
  for _, seat in ipairs(record.held) do
    if left <= 0 then break end
    redis.call('ZADD', HELD, string.format('%.0f', seat[2]), seat[1])
    left = left - 1
  end
end
redis.call('HSET', B, 'version', record.version, 'status', record.status, 'reason', record.reason, 'quota', record.quota,
  'needs', record.needs, 'per_person', record.per_person, 'bit', record.bit, 'closes_at', record.closes_at,
  'starts_at', record.starts_at, 'seat_ms', record.seat_ms)
terms = read_terms()
if number('confirmed') < record.quota then redis.call('HSET', B, 'sold_told', 0) end
if record.status == 'closed' then redis.call('DEL', QUEUE) end
sweep()
put_state(STATE, ARGV[3])
show_counts()
if ARGV[4] ~= '' then append(record.bit, ARGV[4], true) end
return {'ok', build and 'built' or 'changed'}
