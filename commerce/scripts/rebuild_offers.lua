-- Set a show's offers, counters and holds from what PostgreSQL remembers, when Redis has lost them.
--
-- KEYS[8] offers       see open_offer.lua
-- KEYS[9] people       see hold_offer.lua
-- KEYS[10] holds       see hold_offer.lua
-- KEYS[11] unsettled   see hold_offer.lua
-- KEYS[12] told        see announce_order.lua
-- KEYS[13] buyers      see announce_order.lua
-- ARGV[1] JSON: {"offers":[{"id","kind","quota","per_person","bit","status","parts","gone_parts","gone_event",
--         "no_stock","held","sold"}…],"people":[[offer,member,pieces]…],"holds":[[order,record JSON]…],
--         "buyers":[member…]}
-- Returns {'ok', n}, the number of offers set; refused: unavailable. An offer the show knows is passed over:
-- counters in use are never overwritten.
-- All or none. Every hold is marked to be looked at, so that one that ended meanwhile is settled.
local gone = guard()
if gone then return gone end
local OFFERS, PEOPLE, HOLDS, UNSETTLED, TOLD = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local BUYERS = KEYS[13]
local generation = redis.call('HGET', META, 'generation')
if redis.call('HGET', OFFERS, 'generation') ~= generation then -- left by a store that came back from the past
  redis.call('DEL', OFFERS, PEOPLE, HOLDS, UNSETTLED, TOLD, BUYERS)
  redis.call('HSET', OFFERS, 'generation', generation)
end
local found = cjson.decode(ARGV[1])
local set, restored = 0, {}
for _, offer in ipairs(found.offers) do
  if redis.call('HEXISTS', OFFERS, offer.id .. '|status') == 0 then
    local key = 'offer:' .. offer.id
    local quota = tonumber(offer.quota)
    local none_left = offer.no_stock or (quota ~= nil and offer.sold >= quota)
    redis.call('HSET', OFFERS, offer.id .. '|kind', offer.kind, offer.id .. '|quota', offer.quota,
      offer.id .. '|per_person', offer.per_person, offer.id .. '|bit', offer.bit,
      offer.id .. '|status', offer.status, offer.id .. '|shown', none_left and 'sold_out' or 'open')
    set_count(key, 'held', offer.held)
    set_count(key, 'sold', offer.sold)
    if offer.status == 'open' then
      redis.call('HSET', OFFERS, offer.id .. '|parts', offer.parts, offer.id .. '|gone_parts', offer.gone_parts,
        offer.id .. '|gone_event', offer.gone_event)
      put_state(key, none_left and offer.gone_parts or offer.parts)
    end
    restored[offer.id] = true
    set = set + 1
  end
end
for _, person in ipairs(found.people) do
  if restored[person[1]] then redis.call('HSET', PEOPLE, person[1] .. '|' .. person[2], person[3]) end
end
for _, hold in ipairs(found.holds) do
  if redis.call('HSETNX', HOLDS, hold[1], hold[2]) == 1 then
    redis.call('ZADD', UNSETTLED, string.format('%.0f', NOW), hold[1])
  end
end
for _, member in ipairs(found.buyers) do redis.call('SADD', BUYERS, member) end
return {'ok', set}
