# fog, the library for many clouds, which writes the port into its Host header and lists the zone like a folder.
require 'fog/aws'
require_relative 'talk'

service = nil

talk Fog::AWS::VERSION,
     identity: lambda { |_|
       service ||= Fog::AWS::STS.new(use_iam_profile: true)
       service.refresh_credentials_if_expired
       key = service.instance_variable_get(:@aws_access_key_id)
       raise 'no credentials found' unless key

       { key: key }
     },
     forget: ->(_) { service = nil },
     region: ->(_) { { region: Fog::AWS::STS.fetch_credentials(use_iam_profile: true).fetch(:region) } }
