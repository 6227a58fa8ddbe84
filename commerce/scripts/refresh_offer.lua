-- Bring an open offer's state up to date: prices that changed with the clock, stock that ran out or came back.
--
-- KEYS[8] offers      see open_offer.lua
-- ARGV[1] offer       its id
-- ARGV[2] parts       the state's parts while it is open
-- ARGV[3] gone_parts  the state's parts when nothing is left
-- ARGV[4] no_stock    '1' when the product has no free piece and none that is only held
-- Returns {'ok', '1'} when the state changed, {'ok', '0'} when it is as it was; refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
local OFFERS = KEYS[8]
local offer, key = ARGV[1], 'offer:' .. ARGV[1]
local found = redis.call('HMGET', OFFERS, offer .. '|status', offer .. '|quota', offer .. '|shown',
  offer .. '|parts', offer .. '|bit', offer .. '|gone_event')
if not found[1] then return refused('unavailable', 1000) end
if found[1] ~= 'open' then return {'ok', '0'} end
local quota = tonumber(found[2])
local none_left = ARGV[4] == '1' or (quota ~= nil and get_count(key, 'sold') >= quota)
local shown = none_left and 'sold_out' or 'open'
if shown == found[3] and ARGV[2] == found[4] then return {'ok', '0'} end
redis.call('HSET', OFFERS, offer .. '|parts', ARGV[2], offer .. '|gone_parts', ARGV[3], offer .. '|shown', shown)
put_state(key, none_left and ARGV[3] or ARGV[2])
if none_left and found[3] == 'open' then append(tonumber(found[5]), found[6], true) end
return {'ok', '1'}
