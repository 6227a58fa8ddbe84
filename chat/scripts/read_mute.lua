-- Until when a viewer is muted.
--
-- KEYS[8] mutes     hash: public id -> ms until which the viewer may not comment
-- ARGV[1] public    the viewer's public id
-- Returns {'ok', until}: ms, 0 when not muted; refused: unavailable.
-- All or none: reads only.
local gone = guard()
if gone then return gone end
local until_ms = tonumber(redis.call('HGET', KEYS[8], ARGV[1]) or '0')
return {'ok', until_ms > NOW and until_ms or 0}
