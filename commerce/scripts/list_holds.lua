-- Holds to be looked at: their order should have been told of by now and was not.
--
-- KEYS[8] holds       see hold_offer.lua
-- KEYS[9] unsettled   see hold_offer.lua
-- ARGV[1] limit
-- ARGV[2] ahead_ms    look so far ahead of the clock (0: only what is due)
-- Returns {'ok', {order, record, order, record, …}}; refused: unavailable.
-- All or none: changes nothing but entries that point at no hold.
local gone = guard()
if gone then return gone end
local HOLDS, UNSETTLED = KEYS[8], KEYS[9]
local due = redis.call('ZRANGEBYSCORE', UNSETTLED, '-inf', string.format('%.0f', NOW + tonumber(ARGV[2])),
  'LIMIT', 0, tonumber(ARGV[1]))
local found = {}
for _, order in ipairs(due) do
  local record = redis.call('HGET', HOLDS, order)
  if record then
    found[#found + 1] = order
    found[#found + 1] = record
  else
    redis.call('ZREM', UNSETTLED, order)
  end
end
return {'ok', found}
