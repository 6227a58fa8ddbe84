-- Keep one viewer from commenting for a time, or let them again.
--
-- KEYS[8] mutes     hash: public id -> ms until which the viewer may not comment
-- ARGV[1] public    the viewer's public id
-- ARGV[2] length    ms from now; 0 ends the mute
-- ARGV[3] by        who mutes, as JSON text
-- Returns {'ok', until}: ms, 0 when not muted; refused: unavailable.
-- All or none: the staff-only event is appended with the change, so a lost store can be filled again from it.
local gone = guard()
if gone then return gone end
local public, length = ARGV[1], tonumber(ARGV[2])
local by = ',"by":' .. ARGV[3] .. '}'
if length == 0 then
  if redis.call('HDEL', KEYS[8], public) == 1 then
    append(8, '{"type":"viewer.unmuted","viewer":"' .. public .. '"' .. by, true)
  end
  return {'ok', 0}
end
local until_ms = string.format('%.0f', NOW + length)
redis.call('HSET', KEYS[8], public, until_ms)
append(8, '{"type":"viewer.muted","viewer":"' .. public .. '","until":' .. until_ms .. by, true)
return {'ok', tonumber(until_ms)}
