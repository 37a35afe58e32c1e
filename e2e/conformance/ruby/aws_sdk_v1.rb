# The AWS SDK for Ruby, version 1, which knows the metadata service as it was first, without tokens.
require 'aws-sdk-v1'
require_relative 'talk'

provider = AWS::Core::CredentialProviders::DefaultProvider.new

talk AWS::VERSION,
     identity: ->(_) { { key: provider.access_key_id } },
     forget: ->(_) { provider.refresh }
