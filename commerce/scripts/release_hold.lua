-- Give back a hold whose order never became durable. What has been told of an order is left alone.
--
-- KEYS[8] offers       see open_offer.lua
-- KEYS[9] people       see hold_offer.lua
-- KEYS[10] holds       see hold_offer.lua
-- KEYS[11] unsettled   see hold_offer.lua
-- KEYS[12] told        see announce_order.lua
-- ARGV[1] order
-- Returns {'ok', '1'} when pieces came back, else {'ok', '0'}; refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
local OFFERS, PEOPLE, HOLDS, UNSETTLED, TOLD = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local order = ARGV[1]
if redis.call('SISMEMBER', TOLD, order .. ':placed') == 1 then return {'ok', '0'} end
redis.call('ZREM', UNSETTLED, order)
local record = redis.call('HGET', HOLDS, order)
local hold = record and cjson.decode(record)
if not hold or hold.s ~= 'h' then return {'ok', '0'} end
for _, line in ipairs(hold.o) do
  count('offer:' .. line[1], 'held', -line[2])
  redis.call('HINCRBY', PEOPLE, line[1] .. '|' .. hold.m, -line[2])
  if redis.call('HGET', OFFERS, line[1] .. '|status') == 'open' then touch_state('offer:' .. line[1]) end
end
redis.call('HDEL', HOLDS, order)
return {'ok', '1'}
