-- Purpose: issue a sign-in code for a phone, if neither the phone nor the address asks too often.
-- KEYS[1] code    hash: digest, tries; lives as long as the code
-- KEYS[2] phone   zset of the phone's last sends: score and member are ms
-- KEYS[3] ip      zset of the address's last sends
-- ARGV[1] digest of the code · [2] code lives ms · [3] pause between two sends to one phone, ms
-- ARGV[4] window ms · [5] sends a window and phone · [6] sends a window and address · [7] nonce
-- Returns {'ok', 1} or {'refused', 'rate_limited', retry_ms}.
-- All or none: a refused call counts for nothing and leaves the older code as it was.
-- Example: {sign-in}:code:<p> {sign-in}:phone:<p> {sign-in}:ip:<a>  <digest> 300000 60000 3600000 5 20 <nonce>
assert(#KEYS == 3 and #ARGV == 7)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window = tonumber(ARGV[4])

local wait = 0
local function ask(key, most)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
  if redis.call('ZCARD', key) >= most then
    local oldest = redis.call('ZRANGE', key, -most, -most, 'WITHSCORES')
    wait = math.max(wait, tonumber(oldest[2]) + window - now)
  end
end
ask(KEYS[2], tonumber(ARGV[5]))
ask(KEYS[3], tonumber(ARGV[6]))
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
if last[2] then wait = math.max(wait, tonumber(last[2]) + tonumber(ARGV[3]) - now) end
if wait > 0 then return {'refused', 'rate_limited', string.format('%.0f', wait)} end

for i = 2, 3 do
  redis.call('ZADD', KEYS[i], now, ARGV[7])
  redis.call('PEXPIRE', KEYS[i], window)
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'tries', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'ok', 1}
