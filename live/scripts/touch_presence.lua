-- Purpose: one node says how many viewers it has in a show; the sum over live nodes is the presence state.
-- KEYS: the spine; 8 hash of nodes: node -> '<viewers>:<ms>'.
-- ARGV: 1 node; 2 its viewers; 3 ms after which a silent node no longer counts.
-- Returns: {'ok', viewers over all nodes}. The state changes only when the number people read changes: exact
--          below 100, tens below 1,000, fifties above.
-- All or none: the sum and the state move together.
local gone = guard()
if gone then return gone end
redis.call('HSET', KEYS[8], ARGV[1], ARGV[2] .. ':' .. string.format('%.0f', NOW))
local nodes = redis.call('HGETALL', KEYS[8])
local total = 0
for i = 1, #nodes, 2 do
  local cut = string.find(nodes[i + 1], ':', 1, true)
  if NOW - tonumber(string.sub(nodes[i + 1], cut + 1)) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[8], nodes[i])
  else
    total = total + tonumber(string.sub(nodes[i + 1], 1, cut - 1))
  end
end
local step = total < 100 and 1 or (total < 1000 and 10 or 50)
local shown = math.floor(total / step) * step
if get_count('presence', 'viewers') ~= shown or redis.call('HEXISTS', STATES, 'presence') == 0 then
  set_count('presence', 'viewers', shown)
  put_state('presence', '[{"a":0,"d":{},"counts":["viewers"]}]')
end
if total > tonumber(redis.call('HGET', META, 'viewers_peak') or '0') then
  redis.call('HSET', META, 'viewers_peak', total)
end
return {'ok', total}
