#!/usr/bin/env ruby
# frozen_string_literal: true

# One job with its tokens as they come, then many with a bounded window. Queue by environment:
# PENSTOCK_REDIS, PENSTOCK_QUEUE, PENSTOCK_TENANT.
require_relative "penstock"

def chat(text, **fields)
  body = { messages: [{ role: "user", content: text }], max_tokens: 96, temperature: 0 }
  Penstock::Job.new("chat", body, **fields)
end

client = Penstock::Client.new(ENV.fetch("PENSTOCK_REDIS", "redis://127.0.0.1:6379"),
                              queue: ENV.fetch("PENSTOCK_QUEUE", "default"),
                              tenant: ENV.fetch("PENSTOCK_TENANT", "default"))
job = client.enqueue(chat("Extract JSON: reviews - WARN - sent 57862 mails, 2ms", stream: true))
client.stream(job, timeout: 300) { |piece| print piece }
puts
failed = 0
jobs = (1..20).lazy.map { |i| chat("Extract JSON: WARN - billing - took #{i}ms") }
client.bulk(jobs, window: 8) do |one, result|
  failed += 1 unless result.ok?
  puts "#{one.id} #{result.ok? ? result.text : result.error['message']}"
end
client.close
exit(failed.zero?)
