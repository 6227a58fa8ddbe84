-- include: commerce/seats
-- Takes back lapsed seats, serves the queue, and reads what is still to be written, told or settled.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 longest outbox to read · 3 read what has been settling for so many ms
-- Returns {'ok', generation or '' when the counters are missing, version, lapsed, served, [outbox JSON, …],
--         [settling field, value, …]}
-- All or none; again at once it changes nothing.
local gone = guard() if gone then return gone end
if missing() then return {'ok', '', '', 0, 0, {}, {}} end
local lapsed, served = sweep()
show_counts()
local settling, due = {}, NOW - tonumber(ARGV[3])
local found = redis.call('HGETALL', SETTLING)
for at = 1, #found, 2 do
  if tonumber(string.match(found[at + 1], '^%d+')) <= due then
    settling[#settling + 1] = found[at]
    settling[#settling + 1] = found[at + 1]
  end
end
return {'ok', terms.generation, terms.version, lapsed, served,
  redis.call('LRANGE', OUTBOX, 0, tonumber(ARGV[2]) - 1), settling}
