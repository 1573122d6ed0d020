-- What wrk sends, and how it tells what came back: wrk … -s chat.lua URL -- KEY fresh|same
-- fresh: no prompt is asked twice; same: always the same one, so that its answer is cached.

local body = '{"model":"mock","messages":[{"role":"system","content":"You are a helpful assistant. Answer briefly."},'
  .. '{"role":"user","content":"%s: what would a river say to a turbine?"}],"max_tokens":64,"temperature":0}'

local count, key, fresh = 0, nil, true

function init(args)
  key, fresh = args[1], args[2] == "fresh"
  math.randomseed(os.time())
  count = math.random(1, 1000000000) * 1000
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. key
end

function request()
  if fresh then
    count = count + 1
  end
  return wrk.format(nil, nil, nil, string.format(body, fresh and string.format("%d", count) or "same"))
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests":%d,"seconds":%.6f,"p50":%.6f,"p99":%.6f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
