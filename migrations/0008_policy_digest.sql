-- Of the policy that a client said it holds to, in hexadecimal.
ALTER TABLE clients ADD COLUMN policy_digest TEXT;
