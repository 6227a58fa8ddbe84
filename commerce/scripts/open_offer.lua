-- Tell a show of an offer that is durable: its quota, its state and the event.
--
-- KEYS[8] offers      hash: '<offer>|<field>' -> kind, quota, per_person, bit, parts, gone_parts, gone_event,
--                     status (open | closed), shown (open | sold_out); and 'generation' of the counters
-- ARGV[1] offer       its id
-- ARGV[2] kind        'pin' or 'flash'
-- ARGV[3] quota       pieces in all, or ''
-- ARGV[4] per_person  pieces a person, or ''
-- ARGV[5] bit         its audience
-- ARGV[6] parts       the state's parts while it is open
-- ARGV[7] gone_parts  the state's parts when nothing is left
-- ARGV[8] event       offer.opened
-- ARGV[9] gone_event  offer.sold_out
-- Returns {'ok', '1'}, or {'ok', '0'} for one already told; refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
local OFFERS = KEYS[8]
local offer, key = ARGV[1], 'offer:' .. ARGV[1]
if redis.call('HEXISTS', OFFERS, offer .. '|status') == 1 then return {'ok', '0'} end
redis.call('HSETNX', OFFERS, 'generation', redis.call('HGET', META, 'generation'))
redis.call('HSET', OFFERS, offer .. '|kind', ARGV[2], offer .. '|quota', ARGV[3], offer .. '|per_person', ARGV[4],
  offer .. '|bit', ARGV[5], offer .. '|parts', ARGV[6], offer .. '|gone_parts', ARGV[7],
  offer .. '|gone_event', ARGV[9], offer .. '|status', 'open', offer .. '|shown', 'open')
set_count(key, 'held', 0)
set_count(key, 'sold', 0)
if status() == 'ended' then return {'ok', '1'} end
put_state(key, ARGV[6])
append(tonumber(ARGV[5]), ARGV[8], true)
return {'ok', '1'}
