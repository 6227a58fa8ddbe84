-- Purpose: give the log a new epoch when a node saw numbers that the store no longer has (writes lost in a
-- fail-over): clients would take the next events for ones they had.
-- KEYS: the spine (prelude).
-- ARGV: 1 epoch the node follows; 2 the highest number it saw; 3 a new epoch.
-- Returns: {'ok', epoch now}. Only the first of several nodes changes it.
-- All or none.
local gone = guard()
if gone then return gone end
local epoch = redis.call('HGET', META, 'epoch')
if epoch == ARGV[1] and tonumber(redis.call('HGET', META, 'seq')) < tonumber(ARGV[2]) then
  redis.call('HSET', META, 'epoch', ARGV[3])
  return {'ok', ARGV[3]}
end
return {'ok', epoch}
