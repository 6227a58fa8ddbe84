-- Put the cost meter on the screens of staff, when it changed.
--
-- KEYS  the spine (prelude)
-- ARGV[1] parts  of state `costs`, for the audience of staff
-- Returns {'ok', 1} when it changed, {'ok', 0} when it is as it was; refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
if redis.call('HGET', STATES, 'costs') == ARGV[1] then return {'ok', 0} end
put_state('costs', ARGV[1])
return {'ok', 1}
