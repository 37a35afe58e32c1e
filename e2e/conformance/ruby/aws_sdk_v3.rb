# The AWS SDK for Ruby, version 3.
require 'aws-sdk-core'
require_relative 'talk'

endpoint, region = ARGV
client = nil
metadata = Aws::EC2Metadata.new

talk Aws::CORE_GEM_VERSION,
     identity: lambda { |_|
       client ||= Aws::STS::Client.new(endpoint: endpoint, region: region)
       credentials = client.config.credentials
       unless credentials&.set?
         client = nil
         raise 'no credentials found'
       end
       { key: credentials.credentials.access_key_id, arn: client.get_caller_identity.arn }
     },
     # As the SDK itself does when they are about to expire: with the session token that it holds.
     forget: ->(_) { client&.config&.credentials&.refresh! },
     region: ->(_) { { region: metadata.get('/latest/meta-data/placement/region') } },
     get: ->(path) { { body: metadata.get("/latest/meta-data/#{path}") } }
