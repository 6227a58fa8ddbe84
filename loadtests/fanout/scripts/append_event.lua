-- Appends one event to a show's log, as every deciding script does at its end, and decides nothing itself.
--
-- ARGV  1 event: JSON object text beginning '{"type":'; '' appends nothing and asks where the log stands
--       2 '1' when it cuts the beat short, else ''
-- Returns {'ok', seq}, asked with '' {'ok', seq, epoch}, or {'refused', 'unavailable', …} without the show.
-- All or none.
local gone = guard()
if gone then return gone end
if ARGV[1] == '' then
  local stands = redis.call('HMGET', META, 'seq', 'epoch')
  return {'ok', tonumber(stands[1]), stands[2]}
end
return {'ok', append(0, ARGV[1], ARGV[2] == '1')}
