-- Cast one ballot: one a person and poll, counted in the same step.
--
-- KEYS[8] poll        hash: open, choices (how many), max, closes_at, definition
-- KEYS[9] ballots     hash: person -> {"c":[choices],"at":ms}
-- ARGV[1] id          of the poll
-- ARGV[2] person      a member's id, else a guest's; answers are recorded by person:key
-- ARGV[3] key         of the command
-- ARGV[4] digest      of the command's body
-- ARGV[5] choices     JSON list, checked against the definition by the caller
-- ARGV[6] records     n, then n behaviour records, then the numbers of the choices
-- Returns {'ok', '{"choices":[…]}'}; refused: unavailable, key_reused, not_found, closed, already_voted.
-- All or none.
local gone = whole_guard()
if gone then return gone end
local POLL, BALLOTS, id, person = KEYS[8], KEYS[9], ARGV[1], ARGV[2]

local again = recall(person, ARGV[3], ARGV[4])
if again then return again end
local poll = redis.call('HMGET', POLL, 'open', 'closes_at')
if not poll[1] then return refused('not_found') end
local closes_at = tonumber(poll[2] or '')
if poll[1] ~= '1' or (closes_at and NOW >= closes_at) then return refused('closed') end
local ballot = '{"c":' .. ARGV[5] .. ',"at":' .. string.format('%.0f', NOW) .. '}'
if redis.call('HSETNX', BALLOTS, person, ballot) == 0 then return refused('already_voted') end

local state, last = 'poll:' .. id, 6 + tonumber(ARGV[6])
count(state, 'voters', 1)
for index = last + 1, #ARGV do count(state, ARGV[index], 1) end
touch_state(state)
for index = 7, last do behave(ARGV[index]) end
local reply = '{"choices":' .. ARGV[5] .. '}'
remember(person, ARGV[3], ARGV[4], reply)
return {'ok', reply}
