-- Which poll the show shows: the open one, else the one closed last.
--
-- KEYS  the spine only
-- Returns {'ok', id}, '' when there is none; refused: unavailable.
-- All or none: reads only.
local gone = guard()
if gone then return gone end
return {'ok', redis.call('HGET', META, 'poll_shown') or ''}
