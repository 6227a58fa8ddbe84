-- include: commerce/seats
-- One moment of a benefit, read whole.
--
-- KEYS  as in seats.lua
-- ARGV  1 id
-- Returns {'ok', generation or '' when the counters are missing, version, quota, confirmed, held (seats and settling),
--         queued, status, changes of seats not yet written}
-- Changes nothing.
local gone = guard() if gone then return gone end
if missing() then return {'ok', '', 0, 0, 0, 0, 0, '', 0} end
return {'ok', terms.generation, tonumber(terms.version), number('quota'), number('confirmed'), held_count(),
  redis.call('ZCARD', QUEUE), terms.status, redis.call('LLEN', OUTBOX)}
