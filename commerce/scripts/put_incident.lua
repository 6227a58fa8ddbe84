-- Bring a show in line with the switch for money: while it is on, nothing is given, held or started, and viewers
-- see why. The row in PostgreSQL is committed before; a repeat, or word of an older act, changes nothing.
--
-- KEYS  the spine (prelude); META.incident is the reason while it is on, META.incident_version the last act known
-- ARGV[1] version   of the act: later acts have higher ones
-- ARGV[2] parts     of state `incident`; '' when it ended
-- ARGV[3] event     incident.began or incident.ended
-- ARGV[4] reason    '' when it ended
-- Returns {'ok', 1}, or {'ok', 0} when this act, or a later one, was in force already; refused: unavailable.
-- All or none. A show that never knew of the incident is not told that it ended.
local gone = guard()
if gone then return gone end
local found = redis.call('HMGET', META, 'incident_version', 'incident')
if found[1] and tonumber(found[1]) >= tonumber(ARGV[1]) then return {'ok', 0} end
redis.call('HSET', META, 'incident_version', ARGV[1])
if ARGV[2] ~= '' then
  redis.call('HSET', META, 'incident', ARGV[4])
  put_state('incident', ARGV[2])
  append(0, ARGV[3], true)
elseif found[2] then
  redis.call('HDEL', META, 'incident')
  drop_state('incident')
  append(0, ARGV[3], true)
end
return {'ok', 1}
