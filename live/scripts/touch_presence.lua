-- Purpose: one node says how many viewers it has in a show, and how hard it is pressed; the sum over live nodes
-- is the presence state, the hardest pressed one the state `degraded`.
-- KEYS: the spine; 8 hash of nodes: node -> '<viewers>:<ms>:<steps taken under pressure>'.
-- ARGV: 1 node; 2 its viewers; 3 ms after which a silent node no longer counts; 4 its steps, 0–3.
-- Returns: {'ok', viewers over all nodes}. The presence state changes only when the number people read changes:
--          exact below 100, tens below 1,000, fifties above.
-- All or none: the sum and the states move together.
local gone = guard()
if gone then return gone end
local STEPS = {'reactions', 'comments', 'presence'}
redis.call('HSET', KEYS[8], ARGV[1], ARGV[2] .. ':' .. string.format('%.0f', NOW) .. ':' .. ARGV[4])
local nodes = redis.call('HGETALL', KEYS[8])
local total, level = 0, 0
for i = 1, #nodes, 2 do
  local viewers, at, steps = string.match(nodes[i + 1], '^(%d+):(%d+):(%d+)$')
  if not at or NOW - tonumber(at) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[8], nodes[i])
  else
    total = total + tonumber(viewers)
    level = math.max(level, tonumber(steps))
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
if level ~= tonumber(redis.call('HGET', META, 'degraded') or '0') then
  redis.call('HSET', META, 'degraded', level)
  if level == 0 then
    drop_state('degraded')
  else
    put_state('degraded', '[{"a":0,"d":{"step":"' .. STEPS[level] .. '","since":' .. string.format('%.0f', NOW) .. '}}]')
  end
end
return {'ok', total}
