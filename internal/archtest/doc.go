// Package archtest keeps the house in order: its only content is a test that fails when a package
// imports one it must not. The table of forbidden edges in rules_test.go says why each is forbidden;
// whoever needs one after all changes the table and says why there.
package archtest
