-- Purpose: give the log a new epoch when a node saw entries that the store no longer has (writes lost in a
-- fail-over): clients would take the next events for ones they had. The counters of what is worth money are of
-- the past too: under the new generation they are refused until they are built anew from the tables.
-- KEYS: the spine (prelude).
-- ARGV: 1 epoch the node follows; 2 the highest number it saw; 3 number and 4 event of the last entry it can
--       compare ('' when none); 5 the last number at which node and store agree; 6 a new epoch; 7 the show's
--       new generation.
-- Returns: {'ok', 1 renewed | 0 the log is the one the node saw, or another node was first}.
-- All or none.
local gone = guard()
if gone then return gone end
local found = redis.call('HMGET', META, 'epoch', 'seq')
if found[1] ~= ARGV[1] then return {'ok', 0} end
local other = tonumber(found[2]) < tonumber(ARGV[2])
if not other and ARGV[4] ~= '' then
  local entry = redis.call('XRANGE', LOG, ARGV[3] .. '-0', ARGV[3] .. '-0')[1]
  if entry then
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'e' then other = entry[2][i + 1] ~= ARGV[4] end
    end
  end
end
if not other then return {'ok', 0} end
local agreed = math.min(tonumber(ARGV[5]), tonumber(found[2]))
redis.call('HSET', META, 'epoch', ARGV[6], 'epoch_before', ARGV[1], 'epoch_from', agreed, 'generation', ARGV[7],
  'rebuilding', string.format('%.0f', NOW))
return {'ok', 1}
