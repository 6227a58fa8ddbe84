-- Tell a show that an offer is closed: its state goes, its counters stay for what is still held.
--
-- KEYS[8] offers   see open_offer.lua
-- ARGV[1] offer    its id
-- ARGV[2] bit      its audience
-- ARGV[3] event    offer.closed
-- Returns {'ok', '1'}, or {'ok', '0'} for one already told; refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
local OFFERS = KEYS[8]
local offer = ARGV[1]
if redis.call('HGET', OFFERS, offer .. '|status') == 'closed' then return {'ok', '0'} end
redis.call('HSET', OFFERS, offer .. '|status', 'closed')
redis.call('HDEL', OFFERS, offer .. '|parts', offer .. '|gone_parts', offer .. '|gone_event')
drop_state('offer:' .. offer)
append(tonumber(ARGV[2]), ARGV[3], true)
return {'ok', '1'}
